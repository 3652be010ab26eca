"""Every linear layer by one Triton kernel with this tile and this split of K: an order of additions that we know.

Its text is tile=MxNxK,splitk=S. The kernel is in replay/triton_product.py; it needs triton and a CUDA device.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from replay.factors import Evidence, Setup, Unpinnable

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Let the kernel compute every linear layer of the model."""
    name = f"gemm.triton={value}"
    if setup.model.device.type != "cuda":
        raise Unpinnable(f"{name}: needs a CUDA device")
    try:
        from replay import triton_product
    except ImportError:
        raise Unpinnable(f"{name}: triton is not installed") from None
    try:
        tile = triton_product.parse(value)
    except ValueError as fault:
        raise Unpinnable(f"{name}: {fault}") from None
    short = [layer.in_features for _, layer in setup.linear_layers() if not tile.uses_all_splits(layer.in_features)]
    if short:
        raise Unpinnable(f"{name}: a layer with {short[0]} input features has nothing left for the last split")

    def kernel(x: Any, weight: Any, bias: Any) -> Any:
        try:
            return triton_product.product(tile, x, weight, bias)
        except triton_product.OutOfResources as fault:
            raise Unpinnable(f"{name}: this device is too small for the tile: {fault}") from fault

    for role in {role for role, _ in setup.linear_layers()}:
        setup.set_kernel(role, kernel, name)
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the tile that the kernels of the profile were compiled with, from their names; no other product ran."""
    if not evidence.kernels or any(call.products for call in evidence.calls):
        return None
    from replay.triton_product import tile_of

    tiles = {str(tile) for name in evidence.kernels if (tile := tile_of(name))}
    return tiles.pop() if len(tiles) == 1 else None
