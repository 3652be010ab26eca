"""The request's own rows at the output of every operator in one pass: kept, hashed, or replaced by another run's.

Operators are linear layers by role, embeddings, norms, and attention itself, which is seen as the input of the layer
`o`. Sums of the residual stream, rotary embeddings and activation functions have no module of their own or work element
by element: what they would change is seen at the next operator. An operator is named `layers.3.attention`, `lm_head`.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from replay.engines.transformers_launch import PaddedBatch
from replay.factors import LAYERS, Setup, Unpinnable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.transformers_packed import PackedBatch


class Activations:
    """One pass of one run. number: which, 0 is the prompt's; donated: operator → own rows that take its place."""

    def __init__(self, number: int, donated: dict[str, torch.Tensor]) -> None:
        self.number, self._donated = number, donated
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._own: torch.Tensor | None = None
        self._row = self._width = 0

    def kept(self) -> dict[str, torch.Tensor]:
        """Return operator → the own rows [tokens, …] as computed, of a prompt in pieces one after another."""
        return {name: torch.cat(parts) for name, parts in self._parts.items()}

    def hashes(self) -> tuple[tuple[str, str], ...]:
        """Return (operator, sha256 of dtype and raw bytes of the own rows), in order of execution."""
        return tuple((name, _sha256(rows)) for name, rows in self.kept().items())

    @contextmanager
    def of(self, batch: PaddedBatch | PackedBatch, setup: Setup) -> Iterator[None]:
        """Watch the model for the block. Raises Unpinnable where the own rows cannot be told from the others'."""
        if not isinstance(batch, PaddedBatch):
            raise Unpinnable("operators: the request's rows in a packed launch are not told apart in this version")
        real, self._row = batch.padding[batch.row].bool(), batch.row
        launches = start = 0

        def begin(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            nonlocal launches, start
            width = self._width = kwargs["input_ids"].shape[1]
            prompt, number = launches <= batch.earlier, max(launches - batch.earlier, 0)
            own = real[start : start + width].nonzero()[:, 0] if prompt else torch.arange(width)
            self._own = own if number == self.number else None
            launches, start = launches + 1, start + width

        with ExitStack() as stack:
            stack.callback(setup.model.register_forward_pre_hook(begin, with_kwargs=True).remove)
            seen = [self._hook(stack, path, module) for path, module in setup.model.named_modules()]
            if "attention" not in seen:
                raise Unpinnable("operators: the model has no layer o_proj, so its attention cannot be seen")
            yield

    def _hook(self, stack: ExitStack, path: str, module: Any) -> str | None:
        """Watch a module if it is an operator; return 'attention' where attention is seen at its input."""
        name = operator(path, module)
        if name is None:
            return None

        def after(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor | None:
            return self._take(name, output)

        stack.callback(module.register_forward_hook(after).remove)
        if not name.endswith(".o"):
            return None
        attention = f"{name.removesuffix('.o')}.attention"

        def before(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            new = self._take(attention, args[0])
            return None if new is None else (new, *args[1:])

        stack.callback(module.register_forward_pre_hook(before).remove)
        return "attention"

    def _take(self, name: str, x: torch.Tensor) -> torch.Tensor | None:
        """Keep the own rows of x [rows, tokens, …]; return x with the donated ones, None where there are none."""
        if self._own is None:
            return None
        if x.dim() < 3 or x.shape[1] not in (1, self._width):
            raise Unpinnable(f"operators: {name} gives {list(x.shape)}, in which the request's rows are not known")
        own = self._own if x.shape[1] == self._width else torch.tensor([x.shape[1] - 1])
        mine = x[self._row, own]
        parts = self._parts.setdefault(name, [])
        start = sum(len(part) for part in parts)
        parts.append(mine.detach().clone())
        if name not in self._donated:
            return None
        new = self._donated[name][start : start + len(mine)]
        if new.shape != mine.shape:
            raise Unpinnable(f"operators: {name} computes {len(mine)} tokens here and {len(new)} in the donor")
        if new.dtype != x.dtype and name != "lm_head":
            raise Unpinnable(f"operators: {name} computes in {x.dtype} here and in {new.dtype} in the donor")
        patched = x.to(torch.promote_types(x.dtype, new.dtype), copy=True)
        patched[self._row, own] = new.to(patched.dtype)
        return patched


def operator(path: str, module: Any) -> str | None:
    """Return the operator's name, None for a module that is none: 'model.layers.3.mlp.down_proj' is layers.3.down."""
    norm = "Norm" in type(module).__name__ and not list(module.children())
    if not norm and not isinstance(module, torch.nn.Linear | torch.nn.Embedding):
        return None
    parts = path.split(".")
    layer = next((at for at, part in enumerate(parts) if part.isdigit()), None)
    last = LAYERS.get(parts[-1], parts[-1])
    return last if layer is None else f"layers.{parts[layer]}.{last}"


def _sha256(rows: torch.Tensor) -> str:
    digest = hashlib.sha256(str(rows.dtype).encode())
    digest.update(rows.contiguous().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()
