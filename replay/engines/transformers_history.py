"""Keys and values of one request, taken out of one run's cache and put into another's.

Left padding moves positions in the cache, not the rotary positions of real tokens, so what is taken is the real
tokens' keys and values and no padding.
"""

from __future__ import annotations

from typing import Any

import torch

from replay.engines.transformers_trial import Enough
from replay.factors import Unpinnable

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
                raise Unpinnable("history: the two runs' keys and values differ in number or dtype")
            layer.keys[row][:, real] = keys
            layer.values[row][:, real] = values
