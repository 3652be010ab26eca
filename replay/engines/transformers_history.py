"""Keys and values of one request, taken out of one run's cache and put into another's.

Left padding moves positions in the cache, not the rotary positions of real tokens, so what is taken is the real
tokens' keys and values and no padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from replay.engines.transformers_schedule import OWN
from replay.engines.transformers_trial import Enough
from replay.factors import Unpinnable

if TYPE_CHECKING:
    from replay.engines.transformers_packed import PackedBatch

DIFFER = "history: the two runs' keys and values differ in number or dtype"
Snapshot = list[tuple[torch.Tensor, torch.Tensor]]


def earlier(snapshot: Snapshot, passes: int) -> Snapshot:
    """Return the keys and values as they were some passes of one token before: a pass adds to them, changes none."""
    return [(keys[:, : keys.shape[1] - passes], values[:, : values.shape[1] - passes]) for keys, values in snapshot]


class CacheSwitch:
    """A forward pre-hook of the model that, before pass `number`, copies the request's cache or replaces it."""

    def __init__(self, number: int, padding: torch.Tensor, row: int, snapshot: Snapshot | None = None) -> None:
        self.number, self.row, self.snapshot = number, row, snapshot
        self.taken: Snapshot = []
        self._prompt = padding[row].bool()
        self._passes = 0

    def __call__(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """Act before the pass whose turn it is."""
        number, self._passes = self._passes, self._passes + 1
        if number != self.number:
            return
        layers = getattr(kwargs.get("past_key_values"), "layers", None)
        if layers is None or any(getattr(layer, "keys", None) is None for layer in layers):
            raise Unpinnable("history: this run keeps no keys and values that could be taken")
        length = layers[0].keys.shape[-2]
        generated = torch.ones(length - len(self._prompt), dtype=torch.bool)
        real, row = torch.cat([self._prompt, generated]).to(layers[0].keys.device), self.row
        if self.snapshot is None:
            self.taken = [(one.keys[row][:, real].clone(), one.values[row][:, real].clone()) for one in layers]
            raise Enough
        for layer, (keys, values) in zip(layers, self.snapshot, strict=True):
            if keys.shape[-2] != int(real.sum()) or keys.dtype != layer.keys.dtype:
                raise Unpinnable(DIFFER)
            layer.keys[row][:, real] = keys
            layer.values[row][:, real] = values


class PagedSwitch:
    """The same before the launch that chooses token `number`, for a request whose cache is kept in pages."""

    def __init__(self, number: int, batch: PackedBatch, snapshot: Snapshot | None = None) -> None:
        self.number, self.batch, self.snapshot = number, batch, snapshot
        self.taken: Snapshot = []

    def __call__(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """Act before the launch whose turn it is."""
        if self.batch.token_index != self.number:
            return
        allocators = kwargs["cache"].layer_to_allocator
        length, new = self.batch.computed, self.snapshot
        views = [allocator._kv_token_views[layer] for layer, allocator in sorted(allocators.items())]
        places = allocators[0].get_read_indices(OWN, 0, length)
        if new is None:
            self.taken = [(keys[places].transpose(0, 1), values[places].transpose(0, 1)) for keys, values in views]
            raise Enough
        for (keys, values), (new_keys, new_values) in zip(views, new, strict=True):
            if new_keys.shape[-2] != length or new_keys.dtype != keys.dtype:
                raise Unpinnable(DIFFER)
            keys[places] = new_keys.transpose(0, 1)
            values[places] = new_values.transpose(0, 1)
