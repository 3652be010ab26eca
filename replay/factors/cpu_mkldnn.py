"""Whether torch may use oneDNN. Without it bf16 products take torch's own loops."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from replay.factors import Evidence, Setup, Unpinnable


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Switch it for the block."""
    if value == "true" and not torch.backends.mkldnn.is_available():
        raise Unpinnable("cpu.mkldnn=true: this torch is built without oneDNN")
    previous = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(value == "true")
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(previous)


def observe(evidence: Evidence) -> str | None:
    """Return whether oneDNN printed a line about a bf16 product."""
    return str(",primitive,exec,cpu,matmul," in evidence.verbose).lower()
