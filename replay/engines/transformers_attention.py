"""Attention of one request by itself, in a launch whose other rows keep the packed one.

A packed launch computes attention of all rows over the keys of all, with a mask; outside of it a request sees its own
keys alone. Here that is one factor: everything else of the launch stays as it is.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from replay.engines.transformers_schedule import own_row
from replay.factors import Unpinnable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replay.engines.transformers_schedule import Launch, PackedRow

ANY_KERNEL = [one for name, one in SDPBackend.__members__.items() if name not in ("ERROR", "OVERRIDEABLE")]


@contextmanager
def own_attention(model: Any, rows: Callable[[], Launch]) -> Iterator[None]:
    """Let the request's row attend as in a batch of its own, for the block. `rows`: those of the current launch.

    Raises Unpinnable where the model's attention is not torch's.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, cache: Any, **kwargs: Any) -> Any:
        key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
        with sdpa_kernel(ANY_KERNEL):  # a pinned kernel is for the request's own row
            out, _ = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        if (own := own_row(rows())) is not None:
            queries, keys = _place(rows(), own)
            out[:, queries], _ = sdpa_attention_forward(
                module, query[:, :, queries], key[:, :, keys], value[:, :, keys], _mask(own, query.device),
                **kwargs | {"is_causal": True},
            )  # fmt: skip
        return out, None

    if (found := model.config._attn_implementation) != "sdpa":
        raise Unpinnable(f"attention.backend: within a schedule this version has torch's own, the model has {found!r}")
    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def _place(rows: Launch, own: PackedRow) -> tuple[slice, slice]:
    """Return where the request's queries and its keys lie in a launch."""
    before = rows[: rows.index(own)]
    query, key = sum(row.tokens for row in before), sum(row.tokens + row.computed for row in before)
    return slice(query, query + own.tokens), slice(key, key + own.computed + own.tokens)


def _mask(own: PackedRow, device: torch.device) -> torch.Tensor | None:
    """Return the mask of a later chunk of a prompt, which comes with one everywhere; the other passes have none."""
    if not own.computed or own.tokens == 1:
        return None
    seen = torch.ones(own.tokens, own.computed + own.tokens, dtype=torch.bool, device=device)
    return seen.tril(own.computed)[None, None]
