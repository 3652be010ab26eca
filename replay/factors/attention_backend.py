"""Attention kernel family."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

from replay.factors import Evidence, Setup, Unpinnable

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
OPERATORS = (("_flash_attention", "flash"), ("_efficient_attention", "efficient"), ("_cudnn_attention", "cudnn"),
             ("_attention_math", "math"))  # fmt: skip


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Allow one kernel family, in this process, for the block."""
    if value not in ("eager", *KERNELS):
        raise Unpinnable(f"attention.backend={value}: static batches do not use it")
    if setup.model.device.type == "cpu" and value in ("efficient", "cudnn"):
        raise Unpinnable(f"attention.backend={value}: not available on a CPU")
    previous = setup.model.config._attn_implementation
    setup.model.set_attn_implementation("eager" if value == "eager" else "sdpa")
    try:
        if value == "eager":
            yield
        else:
            with sdpa_kernel([KERNELS[value]]):
                yield
    except RuntimeError as fault:
        if "No available kernel" in str(fault) or "No viable backend" in str(fault):
            raise Unpinnable(f"attention.backend={value}: torch has no such kernel for these shapes") from fault
        raise
    finally:
        setup.model.set_attn_implementation(previous)


def observe(evidence: Evidence) -> str | None:
    """Return the family from the names of the operators that ran."""
    names = {name for name, _ in evidence.operators if name.startswith("aten::_scaled_dot_product")}
    found = {family for part, family in OPERATORS for name in names if part in name}
    if not names:
        return "eager" if any(name == "aten::softmax" for name, _ in evidence.operators) else None
    return found.pop() if len(found) == 1 else None
