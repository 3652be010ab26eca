"""libcublasLt without a device: takes descriptors as the header describes them, multiplies fp32 in host memory.

Its log lines have the form of the real ones (test_cublaslt_log.py).
"""
# ruff: noqa: N802, N815 - the library's own names

import ctypes
import types

import numpy as np

from replay.cublaslt import Library

NAMES = {0: b"CUBLAS_STATUS_SUCCESS", 7: b"CUBLAS_STATUS_INVALID_VALUE", 15: b"CUBLAS_STATUS_NOT_SUPPORTED"}
KNOWN_IDS, NEEDS, MOST_CUSTOM = (5, 66), 4096, 3
SIZES = {1: 4, 2: 4, 3: 4, 4: 4, 5: 4, 6: 4, 7: 2, 8: 2}


def number(reference, size=4):
    return int.from_bytes(ctypes.string_at(ctypes.addressof(reference._obj), size), "little", signed=False)


class FakeLibrary(Library):
    """A Library whose functions are Python. `made`, `freed`: descriptors; `launched`: (m, n, k, attributes)."""

    def __init__(self):
        self._handle = None
        self.made, self.freed, self.launched, self.algos = {}, [], [], {}
        self.callback, self.mask = None, 0
        names = [name for name in dir(self) if name.startswith("cublasLt")]
        self.c = types.SimpleNamespace(**{name: getattr(self, name) for name in names})

    def new(self, out, *facts):
        key = 1000 + len(self.made)
        self.made[key] = list(facts)
        out._obj.value = key
        return 0

    def free(self, one):
        self.freed.append(one.value)
        return 0

    def cublasLtGetStatusName(self, status):
        return NAMES[status]

    def cublasLtCreate(self, out):
        return self.new(out, "handle")

    def cublasLtMatrixLayoutCreate(self, out, kind, rows, columns, ld):
        return self.new(out, kind, rows.value, columns.value, ld.value)

    def cublasLtMatmulDescCreate(self, out, compute, scale):
        return self.new(out, {"compute": compute, "scale": scale})

    cublasLtMatrixLayoutDestroy = cublasLtMatmulDescDestroy = free

    def cublasLtMatmulDescSetAttribute(self, desc, attribute, value, size):
        self.made[desc.value][0][attribute] = number(value, size.value)
        return 0

    def cublasLtMatmulAlgoInit(self, _handle, compute, scale, a, b, c, d, number, algo):
        assert (compute, scale, len({a, b, c, d})) == (68, 0, 1)
        if number not in KNOWN_IDS:
            return 7
        self.algos[ctypes.addressof(algo._obj)] = {0: number}
        return 0

    def cublasLtMatmulAlgoConfigSetAttribute(self, algo, attribute, value, size):
        if size.value != SIZES[attribute]:
            return 7
        self.algos[ctypes.addressof(algo._obj)][attribute] = number(value, size.value)
        return 0

    def cublasLtMatmulAlgoCheck(self, _handle, _desc, _a, _b, _c, _d, algo, result):
        if self.algos[ctypes.addressof(algo._obj)].get(5, 0) > MOST_CUSTOM:
            return 15
        result._obj.workspace = NEEDS
        return 0

    def cublasLtMatmul(self, _handle, desc, alpha, a, a_desc, b, b_desc, beta, _c, _c_desc, d, d_desc, algo,
                       _workspace, size, _stream):  # fmt: skip
        assert (alpha._obj.value, beta._obj.value, size.value) == (1.0, 0.0, NEEDS)
        attributes = self.algos[ctypes.addressof(algo._obj)]
        weight, x = (self._matrix(address, layout) for address, layout in ((a, a_desc), (b, b_desc)))
        assert self.made[desc.value][0][3] == 1, "A is transposed"
        out = self._matrix(d, d_desc)
        out[:] = weight.T @ x
        self.launched.append((x.shape[1], weight.shape[1], weight.shape[0], dict(attributes)))
        self._log(weight.shape, x.shape, out.shape, attributes, size.value)
        return 0

    def _matrix(self, address, layout):
        kind, rows, columns, ld = self.made[layout.value]
        assert (kind, ld) == (0, rows)
        buffer = (ctypes.c_float * (rows * columns)).from_address(address.value)
        return np.frombuffer(buffer, dtype=np.float32).reshape(columns, rows).T

    def _log(self, a, b, d, attributes, workspace):
        if self.callback is None or not self.mask & 2:
            return
        splits = f" numSplitsK={attributes[2]} reductionScheme=REDUCTION_SCHEME_COMPUTE_TYPE" if 2 in attributes else ""
        operands = (
            f"{name}=0X1 {name}desc=[type=R_32F rows={rows} cols={columns} ld={rows}]"
            for name, (rows, columns) in zip("ABCD", (a, b, d, d), strict=True)
        )
        line = (
            f"{' '.join(operands)} computeDesc=[computeType=COMPUTE_32F scaleType=R_32F transa=OP_T] "
            f"algo=[algoId={attributes[0]}{splits}] workSpace=0X4 workSpaceSizeInBytes={workspace} beta=0 stream=0X0"
        )
        self.callback(2, b"cublasLtMatmul", line.encode())

    def cublasLtLoggerOpenFile(self, _path):
        return 0

    def cublasLtLoggerSetCallback(self, callback):
        self.callback = callback
        return 0

    def cublasLtLoggerSetMask(self, mask):
        self.mask = mask
        return 0
