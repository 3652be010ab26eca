"""The part of cuBLASLt that runs one matrix product by one chosen tactic, through ctypes; and the library's own log.

Standard library: matrices are device addresses. Constants and struct sizes are those of cublasLt.h and cublas_api.h
13.1.0.3. A handle needs a CUDA device; versions, attributes and log lines do not.
"""

from __future__ import annotations

import ctypes
import functools
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from replay.tactic import Tactic

COMPUTE_32F, OP_TRANSPOSED, REAL_32F = 68, 1, 0
"""cublasComputeType_t, cublasOperation_t, cudaDataType: sums in fp32 whatever the operands are."""

DTYPES = {"float32": REAL_32F, "float16": 2, "bfloat16": 14}
"""Name of torch's dtype → cudaDataType."""

DESC_TRANSPOSE_A = 3
CONFIG: dict[str, tuple[int, type[ctypes.c_uint32 | ctypes.c_int32 | ctypes.c_uint16]]] = {
    "tile": (1, ctypes.c_uint32), "splitk": (2, ctypes.c_int32), "reduction": (3, ctypes.c_uint32),
    "swizzle": (4, ctypes.c_uint32), "custom": (5, ctypes.c_uint32), "stages": (6, ctypes.c_uint32),
    "inner": (7, ctypes.c_uint16), "cluster": (8, ctypes.c_uint16),
}  # fmt: skip
"""Field of a tactic → cublasLtMatmulAlgoConfigAttributes_t and the type of its value."""

PREFERENCE_WORKSPACE = 1
TRACE, API = 2, 16
"""Bits of the log mask: what was launched, and every call with its arguments."""

Callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)


class Algo(ctypes.Structure):
    """cublasLtMatmulAlgo_t: 64 opaque bytes, valid for one version of the library."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: 96 bytes."""

    _fields_ = (("algo", Algo), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int), ("waves", ctypes.c_float),
                ("reserved", ctypes.c_int * 4))  # fmt: skip


class LtError(Exception):
    """The library answered with another status than success; the message holds the call and the status's name."""


class Library:
    """A loaded libcublasLt. Raises OSError when there is none under the name."""

    def __init__(self, name: str) -> None:
        self.c = ctypes.CDLL(name)
        self.c.cublasLtGetVersion.restype = ctypes.c_size_t
        self.c.cublasLtGetStatusName.restype = ctypes.c_char_p
        self._handle: ctypes.c_void_p | None = None

    @property
    def version(self) -> int:
        """Return the version, as 130100 for 13.1.0."""
        return int(self.c.cublasLtGetVersion())

    @property
    def handle(self) -> ctypes.c_void_p:
        """Return this process's own handle. Raises LtError without a CUDA device."""
        if self._handle is None:
            made = ctypes.c_void_p()
            self.call("cublasLtCreate", ctypes.byref(made))
            self._handle = made
        return self._handle

    def call(self, function: str, *arguments: object) -> None:
        """Call a function that returns a status. Raises LtError unless that is success."""
        status = getattr(self.c, function)(*arguments)
        if status:
            raise LtError(f"{function} answered {self.c.cublasLtGetStatusName(status).decode('ascii', 'replace')}")

    @contextmanager
    def logged(self, on_line: Callable[[str], None]) -> Iterator[None]:
        """Hand `[function] message` of every traced call of this process to `on_line`; the log is off afterwards."""
        faults: list[Exception] = []

        def take(_level: int, function: bytes, message: bytes) -> None:
            try:
                on_line(f"[{function.decode('utf-8', 'replace')}] {message.decode('utf-8', 'replace')}")
            except Exception as fault:  # noqa: BLE001 - an exception cannot cross the library; it is raised below
                faults.append(fault)

        callback = Callback(take)
        self.call("cublasLtLoggerOpenFile", b"/dev/null")  # else it also writes to stdout
        self.call("cublasLtLoggerSetCallback", callback)
        self.call("cublasLtLoggerSetMask", TRACE | API)
        try:
            yield
        finally:
            self.call("cublasLtLoggerSetMask", 0)
            self.call("cublasLtLoggerSetCallback", None)
        if faults:
            raise faults[0]


@functools.cache
def library(cuda: str) -> Library:
    """Return the library of a CUDA version, as 13.0: the copy that torch has loaded. Raises OSError without one."""
    return Library(f"libcublasLt.so.{cuda.split('.')[0]}")


@dataclass(frozen=True)
class Prepared:
    """An algorithm that the library takes for one problem, and the bytes of workspace that it needs."""

    algo: Algo
    workspace: int


class Problem:
    """x·Wᵀ for row-major x [m, k] and W [n, k] of one dtype; the result is [m, n] in the same dtype.

    cuBLASLt is column-major: there it is D [n, m] = op(W [k, n])ᵀ · X [k, m]. Needs a CUDA device.
    """

    def __init__(self, library: Library, dtype: str, m: int, n: int, k: int) -> None:
        self.library, self.kind = library, DTYPES[dtype]
        self._made: list[tuple[str, ctypes.c_void_p]] = []
        self._w, self._x, self._d = (self._layout(rows, columns) for rows, columns in ((k, n), (k, m), (n, m)))
        self._desc = self._make("MatmulDesc", COMPUTE_32F, REAL_32F)
        transpose = ctypes.c_int32(OP_TRANSPOSED)
        library.call("cublasLtMatmulDescSetAttribute", self._desc, DESC_TRANSPOSE_A, *_buffer(transpose))

    def prepare(self, tactic: Tactic) -> Prepared:
        """Return the tactic's algorithm for this problem. Raises LtError where the library does not take it."""
        algo, result, kinds = Algo(), Heuristic(), (self.kind,) * 4
        types = (COMPUTE_32F, REAL_32F, *kinds)
        self.library.call("cublasLtMatmulAlgoInit", self.library.handle, *types, tactic.id, ctypes.byref(algo))
        configure(self.library, algo, tactic)
        self.library.call("cublasLtMatmulAlgoCheck", self.library.handle, self._desc, self._w, self._x, self._d,
                          self._d, ctypes.byref(algo), ctypes.byref(result))  # fmt: skip
        return Prepared(algo, int(result.workspace))

    def offered(self, workspace: int, count: int) -> list[tuple[dict[str, int], Prepared]]:
        """Return (attributes that it gives back, algorithm) of what the heuristic offers, best first. Raises LtError.

        workspace: bytes that a tactic may use; count: how many to ask for.
        """
        preference = ctypes.c_void_p()
        self.library.call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        results, found = (Heuristic * count)(), ctypes.c_int()
        try:
            self.library.call("cublasLtMatmulPreferenceSetAttribute", preference, PREFERENCE_WORKSPACE,
                              *_buffer(ctypes.c_uint64(workspace)))  # fmt: skip
            self.library.call("cublasLtMatmulAlgoGetHeuristic", self.library.handle, self._desc, self._w, self._x,
                              self._d, self._d, preference, count, results, ctypes.byref(found))  # fmt: skip
        finally:
            self.library.call("cublasLtMatmulPreferenceDestroy", preference)
        usable = [one for one in results[: found.value] if one.state == 0]
        return [(attributes(self.library, one.algo), Prepared(one.algo, int(one.workspace))) for one in usable]

    def run(self, prepared: Prepared, x: int, w: int, out: int, workspace: int, stream: int) -> None:
        """Launch it on a stream; x, w, out, workspace and stream are addresses. Raises LtError."""
        one, zero, address = ctypes.c_float(1), ctypes.c_float(0), ctypes.c_void_p
        self.library.call(
            "cublasLtMatmul", self.library.handle, self._desc, ctypes.byref(one), address(w), self._w, address(x),
            self._x, ctypes.byref(zero), address(out), self._d, address(out), self._d, ctypes.byref(prepared.algo),
            address(workspace), ctypes.c_size_t(prepared.workspace), address(stream),
        )  # fmt: skip

    def close(self) -> None:
        """Free the descriptors."""
        for kind, made in self._made:
            self.library.call(f"cublasLt{kind}Destroy", made)

    def _layout(self, rows: int, columns: int) -> ctypes.c_void_p:
        """Return a dense column-major layout."""
        wide = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
        return self._make("MatrixLayout", self.kind, *wide)

    def _make(self, kind: str, *arguments: object) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self.library.call(f"cublasLt{kind}Create", ctypes.byref(made), *arguments)
        self._made.append((kind, made))
        return made


def configure(library: Library, algo: Algo, tactic: Tactic) -> None:
    """Set what the tactic says on an algorithm. Raises LtError that names the attribute."""
    for field, number in tactic.settings().items():
        attribute, kind = CONFIG[field]
        try:
            library.call("cublasLtMatmulAlgoConfigSetAttribute", ctypes.byref(algo), attribute, *_buffer(kind(number)))
        except LtError as fault:
            raise LtError(f"{fault} for {field}={getattr(tactic, field)}") from None


def attributes(library: Library, algo: Algo) -> dict[str, int]:
    """Return every attribute of an algorithm that the library gives back: field of a tactic → number."""
    found: dict[str, int] = {}
    for field, (attribute, kind) in ({"id": (0, ctypes.c_int32)} | CONFIG).items():
        value, written = kind(), ctypes.c_size_t()
        arguments = (ctypes.byref(algo), attribute, *_buffer(value), ctypes.byref(written))
        if library.c.cublasLtMatmulAlgoConfigGetAttribute(*arguments) == 0:
            found[field] = int(value.value)
    return found


def _buffer(value: Any) -> tuple[Any, ctypes.c_size_t]:
    return ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))
