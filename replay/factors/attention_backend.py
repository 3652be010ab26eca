"""Attention kernel family: one of torch's own, eager, or a flash package through transformers."""

import importlib.util
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
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Value, by transformers' name → the package that it needs."""

OPERATORS = (("_flash_attention", "flash"), ("_efficient_attention", "efficient"), ("_cudnn_attention", "cudnn"),
             ("_attention_math", "math"))  # fmt: skip

OPERATORS_OF_PACKAGES = (("flash_attn::", "flash_attention_2"), ("flash_attn_3::", "flash_attention_3"))
SDPA = "aten::scaled_dot_product_attention"


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Allow one kernel family, in this process, for the block. paged: attention over all rows of a packed launch."""
    setup.attention = value
    if value == "paged":
        yield
        return
    if value not in ("eager", *KERNELS, *PACKAGES):
        raise Unpinnable(f"attention.backend={value}: this version does not know it")
    if setup.model.device.type == "cpu" and value in ("efficient", "cudnn"):
        raise Unpinnable(f"attention.backend={value}: not available on a CPU")
    if value in PACKAGES:
        _check_package(value, setup)
    previous = setup.model.config._attn_implementation
    try:
        setup.model.set_attn_implementation("sdpa" if value in KERNELS else value)
    except (ImportError, ValueError) as fault:
        raise Unpinnable(f"attention.backend={value}: {fault}") from None
    try:
        if value not in KERNELS:
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


def _check_package(value: str, setup: Setup) -> None:
    """Refuse before transformers would take a kernel from the network in the package's place."""
    if setup.model.device.type != "cuda":
        raise Unpinnable(f"attention.backend={value}: needs a CUDA device")
    if importlib.util.find_spec(PACKAGES[value]) is None:
        raise Unpinnable(f"attention.backend={value}: the package {PACKAGES[value]} is not installed")


def observe(evidence: Evidence) -> str | None:
    """Return the family from the names of the operators that ran; those of a package begin with its own name.

    In a packed launch attention over all rows has a mask; where the request's own row runs once more, it has none.
    """
    operators = evidence.operators
    packages = {family for part, family in OPERATORS_OF_PACKAGES for name, _ in operators if part in name}
    if packages:
        return packages.pop() if len(packages) == 1 else None
    if evidence.packed:
        calls = [at for at, (name, _) in enumerate(operators) if name == SDPA]
        own = [at for at in calls if not operators[at][1][3]]
        if not own:
            return "paged" if calls else None
        operators = [operators[at + 1] for at in own]
    names = {name for name, _ in operators if name.startswith("aten::_scaled_dot_product")}
    found = {family for part, family in OPERATORS for name in names if part in name}
    if not names:
        return "eager" if any(name == "aten::softmax" for name, _ in operators) else None
    return found.pop() if len(found) == 1 else None
