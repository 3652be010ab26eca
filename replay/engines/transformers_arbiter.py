"""The pass of the flip once in float64 and once in fp32: the request alone, the tokens that both arms share, no cache.

Weights are upcast from the model's files. What models compute in fp32 on purpose (norms, softmax, rotary angles) is
computed in float64 as well, else the arbiter would be no better than fp32 there.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from replay.factors import Unpinnable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replay.case import Case


class Widened(TorchFunctionMode):  # type: ignore[misc]  # torch has no types for it
    """In the block whatever asks for fp32 gets float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function with float64 in the place of float32."""
        if func is torch.Tensor.float:
            return args[0].double()
        given = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*(_wide(value) for value in args), **given)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def arbitrate(case: Case, load: Callable[[str], Any]) -> dict[str, Any]:
    """Return both tokens' logits in both dtypes, the largest error of fp32, and their difference layer by layer.

    logits: [incident's token, reference's token]; largest_error: over the vocabulary; top: id and logit of float64's
    highest; layers: difference of the two after each layer, through the final norm and the output head (logit lens).
    """
    arms, flip = (case.incident.output_token_ids, case.reference.output_token_ids), case.flip_index
    if flip is None or any(arm is None or len(arm) <= flip for arm in arms):
        raise Unpinnable("arbiter: the case does not say which two tokens it is about")
    pair = [arm[flip] for arm in arms if arm is not None]
    ids = [*case.token_ids, *(case.incident.output_token_ids or ())[:flip]]
    model = load("float64")
    with torch.no_grad():
        with Widened():
            exact, exact_layers = _logits(model, ids, pair)
        near, near_layers = _logits(load("float32"), ids, pair)
    top = int(exact.argmax())
    return {
        "tokens": pair,
        "float64": exact[pair].tolist(),
        "float32": near[pair].tolist(),
        "largest_error": float((near.double() - exact).abs().max()),
        "top": [top, float(exact[top])],
        "layers": [list(both) for both in zip(exact_layers, near_layers, strict=True)],
    }


def _logits(model: Any, ids: list[int], pair: list[int]) -> tuple[torch.Tensor, list[float]]:
    """Return the last position's logits, and the difference of the pair after each layer."""
    inner, head = model.base_model, model.get_output_embeddings()
    layers = inner.layers if hasattr(inner, "layers") and hasattr(inner, "norm") else ()
    found: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        found.append((output if isinstance(output, torch.Tensor) else output[0])[0, -1].clone())

    with ExitStack() as stack:
        stack.enter_context(_eager(model))
        for layer in layers:
            stack.callback(layer.register_forward_hook(keep).remove)
        output = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=1)
    lens = [head(inner.norm(one)).double()[pair] for one in found]
    return output.logits[0, -1].cpu(), [float(values[0] - values[1]) for values in lens]


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Let attention be computed in plain operators, whose precision is the tensors' own."""
    previous = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(previous)
