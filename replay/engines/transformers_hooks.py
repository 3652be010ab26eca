"""Watch `generate` from inside: each forward pass of one call, its raw logits and the tokens chosen.

The recorder and the replay engine both listen here, so what replay compares is what the recorder wrote.
Nothing is computed that could reach the model: hooks read tensors and return None.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from replay.engines.highest_logits import highest


@dataclass
class Launch:
    """One forward pass as it was seen. `attention_mask` is what reached the first attention layer.

    `mask_seen` is False when the model has no attention layer that we can find: then nothing is known of the mask.
    """

    rows: int
    width: int
    cache_length: int
    started: float
    input_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    mask_seen: bool = False
    offloading: bool = False
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    step_ms: float = 0.0

    @property
    def mask_path(self) -> str | None:
        """Return how attention got its mask, by the names of the factor batch.mask_path."""
        if not self.mask_seen:
            return None
        return "implicit" if self.attention_mask is None else "explicit"


@dataclass(frozen=True)
class Call:
    """One decoding loop: the padded batch and the resolved configuration that `generate` hands to it."""

    model: Any
    input_ids: torch.Tensor
    padding_mask: torch.Tensor | None
    config: Any
    criteria: Any
    processors: Any
    past_length: int
    compiled: bool


class Listener(Protocol):
    """Who watches one call. Methods may raise: `guard` of the installer decides what becomes of it."""

    def launched(self, launch: Launch) -> None:
        """Take one finished forward pass; `launch.logits` are the raw logits of each row's last position."""

    def chosen(self, tokens: torch.Tensor, done: torch.Tensor) -> None:
        """Take the token chosen for each row in the latest pass, and which rows have stopped."""

    def ended(self) -> None:
        """Take notice that the loop is over, also when it failed."""


TOP = 3
"""Highest raw logits that are recorded: with two, a token that comes third in the other arm leaves the gap unknown."""
Guard = Callable[[Callable[..., Any]], Callable[..., Any]]
Top = tuple[list[int], list[float]]
"""Ids and values of the highest logits of one row."""


def install(listen: Callable[[Call], Listener | None], guard: Guard) -> Callable[[], None]:
    """Make every greedy or sampling loop of `generate` report to `listen(call)`; return the function that undoes it.

    The loop (`_sample`) and not `generate` is wrapped: only there padding, defaults and limits are settled.
    Raises AttributeError when this transformers has no such loop.
    """
    from transformers.generation.stopping_criteria import StoppingCriteriaList
    from transformers.generation.utils import GenerationMixin

    class Watched(StoppingCriteriaList):  # type: ignore[misc]
        """The caller's stopping criteria; what they see and decide is passed on unchanged."""

        listener: Listener

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
            done = super().__call__(input_ids, scores, **kwargs)
            guard(self.listener.chosen)(input_ids[:, -1], done)
            return done

    original = GenerationMixin._sample

    @functools.wraps(original)
    def sample(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        listener = guard(lambda: listen(_call(self, input_ids, kwargs)))()
        if listener is None:
            return original(self, input_ids, *args, **kwargs)
        watched = Watched(kwargs["stopping_criteria"])
        watched.listener = listener
        kwargs["stopping_criteria"] = watched
        try:
            with watching(self, listener, guard):
                return original(self, input_ids, *args, **kwargs)
        finally:
            guard(listener.ended)()

    GenerationMixin._sample = sample
    return functools.partial(setattr, GenerationMixin, "_sample", original)


@contextlib.contextmanager
def watching(model: Any, listener: Listener, guard: Guard) -> Iterator[None]:
    """Hook the model's forward and its first attention layer for the time of the block."""
    current: list[Launch] = []

    def before(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        cache, ids, embeddings = (kwargs.get(name) for name in ("past_key_values", "input_ids", "inputs_embeds"))
        tokens = ids if ids is not None else embeddings
        if tokens is None:
            raise ValueError("forward without input_ids and inputs_embeds")
        length = int(cache.get_seq_length()) if cache is not None else 0
        launch = Launch(tokens.shape[0], tokens.shape[1], length, time.time(), input_ids=ids)
        launch.offloading = bool(getattr(cache, "offloading", False))
        current[:] = [launch]

    def attention(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if current and "attention_mask" in kwargs:
            current[0].attention_mask, current[0].mask_seen = kwargs["attention_mask"], True

    def after(_module: Any, _args: Any, _kwargs: dict[str, Any], output: Any) -> None:
        launch = current.pop()
        launch.logits = output.logits[:, -1].detach().cpu()
        launch.step_ms = (time.time() - launch.started) * 1e3
        listener.launched(launch)

    def quiet(hook: Callable[..., None]) -> Callable[..., None]:
        guarded = guard(hook)

        @functools.wraps(hook)
        def call(*args: Any, **kwargs: Any) -> None:
            guarded(*args, **kwargs)  # a hook that returns something would replace the model's data

        return call

    with contextlib.ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(quiet(before), with_kwargs=True).remove)
        if (layer := first_attention(model)) is not None:
            stack.callback(layer.register_forward_pre_hook(quiet(attention), with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(quiet(after), with_kwargs=True).remove)
        yield


def first_attention(model: Any) -> Any:
    """Return the attention module of layer 0, or None."""
    candidates = (m for m in model.modules() if getattr(m, "layer_idx", None) == 0 and "Attention" in type(m).__name__)
    return next(candidates, None)


def row_sha256(row: torch.Tensor) -> str:
    """Return sha256 over the raw bytes of one row of logits, in its own dtype: equal hashes are equal bits."""
    return hashlib.sha256(row.contiguous().view(torch.uint8).numpy()).hexdigest()


def top_logits(row: torch.Tensor, count: int) -> Top:
    """Return the highest logits of a row with their ids, highest first; ties lowest id first, as argmax takes them."""
    return top_of_rows(row[None], count)[0]


def top_of_rows(logits: torch.Tensor, count: int) -> list[Top]:
    """Return `top_logits` of every row of (rows, vocabulary), in one pass.

    `highest` takes any of equal values. So one more is asked for: only where it ties with the last does a row need a
    look.
    """
    values, ids = highest(logits, count + 1)
    found = []
    for row, (tops, at) in enumerate(zip(values.tolist(), ids.tolist(), strict=True)):
        if len(tops) > count and tops[count - 1] == tops[count]:
            at = (logits[row] >= tops[count]).nonzero().flatten().tolist()
            tops = logits[row, at].tolist()
        best = sorted(zip(tops, at, strict=True), key=lambda one: (-one[0], one[1]))[:count]
        found.append(([one for _, one in best], [value for value, _ in best]))
    return found


def _call(model: Any, input_ids: torch.Tensor, kwargs: dict[str, Any]) -> Call:
    config, cache = kwargs["generation_config"], kwargs.get("past_key_values")
    return Call(
        model=model,
        input_ids=input_ids,
        padding_mask=kwargs.get("attention_mask"),
        config=config,
        criteria=kwargs["stopping_criteria"],
        processors=kwargs.get("logits_processor") or (),
        past_length=int(cache.get_seq_length()) if cache is not None else 0,
        compiled=bool(model._valid_auto_compile_criteria(kwargs, config)),
    )
