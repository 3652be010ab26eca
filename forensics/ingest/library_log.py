"""What cuBLASLt, oneDNN and MKL print of each call: a line that says a call was executed is a kernel record.

They print into the output of a process, among lines of anybody else; those are no rows. cuBLASLt: the tactic, as
`replay.cublaslt_log` reads it; its clock is local and counts whole seconds, so no time is taken from it. oneDNN
(ONEDNN_VERBOSE): implementation and duration, by the template that it prints first; the start where
ONEDNN_VERBOSE_TIMESTAMP was set. MKL (MKL_VERBOSE): function, CNR mode, threads and duration; it names no kernel.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from forensics.compression import Broken, pieces, unpacked_head
from forensics.ingest import BEGINNING, Entry
from forensics.traces import product
from forensics.values import Rejected
from replay.cublaslt_log import executed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forensics.ingest import Mark

KNOWS_RUN: Final = False
LONGEST_LINE: Final = 64 << 10
SPOKEN: Final = re.compile(
    rb"(?:\[[\d :-]{19}\])?\[cublasLt\]\[\d{1,10}\]\[(?:Error|Trace|Hint|Info|Api)\]\[cublasLt\w*\] "
    rb"|onednn_verbose,v1,"
    rb"|MKL_VERBOSE (?:oneMKL |Intel\(R\) |\w+\()"
)
"""The beginning of a line that one of the libraries printed."""
LT_RAN: Final = re.compile(r"\S*( \S+)?\[Trace\]\[cublasLt\w*Matmul\] ")
DNN_RAN: Final = re.compile(r"onednn_verbose,v1,(?:(\d{1,13}(?:\.\d+)?),)?primitive,exec,(.*)")
DNN_TEMPLATE: Final = re.compile(r"onednn_verbose,v1,(?:[\d.]+,)?primitive,info,template:(?:timestamp,)?operation,(.*)")
DNN_FIELDS: Final = (
    "engine,primitive,implementation,prop_kind,memory_descriptors,attributes,auxiliary,problem_desc,exec_time"
)
"""The template of oneDNN 3, for a log whose beginning is lost."""
MKL_CALL: Final = re.compile(r"MKL_VERBOSE (?!Intel\(R\))\w+\(")
MKL_RAN: Final = re.compile(r"MKL_VERBOSE (\w+)\((.*?)\) (\d{1,12}(?:\.\d+)?)(ns|us|ms|s) (.*)")
MKL_GEMM: Final = re.compile(r"[A-Z]?GEMM(?:_[A-Z0-9]+)?")
MICROSECONDS: Final = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}
SIZE: Final = re.compile(r"\d{1,15}")


def detect(head: bytes) -> bool:
    """Return whether a library speaks in some line, and no line begins like a record."""
    lines = unpacked_head(head).split(b"\n")
    return any(map(SPOKEN.match, lines)) and not any(line.lstrip().startswith((b"{", b"[{")) for line in lines)


def read(path: Path, size: int, start: Mark = BEGINNING) -> Iterator[Entry]:
    """Yield the line of every executed call. `seq` counts them: a log that grew is read from its beginning again."""
    seq = 0
    fields = DNN_FIELDS.split(",")
    for entry in _spoken(path, size):
        if isinstance(entry.record, Rejected):
            yield entry
            continue
        text = (entry.raw or b"").decode("utf-8", "replace")
        if template := DNN_TEMPLATE.fullmatch(text):
            fields = template[1].split(",")
        try:
            kernel = _of_cublaslt(text) or _of_onednn(text, fields) or _of_mkl(text)
        except Rejected as rejected:
            yield entry._replace(record=rejected)
        else:
            if kernel is not None:
                yield entry._replace(record={"kind": "kernel", "seq": seq} | kernel)
                seq += 1


def _of_cublaslt(text: str) -> dict[str, Any] | None:
    if not LT_RAN.match(text):
        return None
    ran = executed(text)
    if ran is None:
        raise Rejected("a product of cuBLASLt with an attribute that we do not know")
    return {
        "op": "matmul", "name": ran.function, "algo": asdict(ran.tactic), "shape": product(ran.m, ran.n, ran.k),
        "workspace_bytes": ran.workspace,
    }  # fmt: skip


def _of_onednn(text: str, fields: list[str]) -> dict[str, Any] | None:
    ran = DNN_RAN.fullmatch(text)
    if ran is None:
        return None
    values = ran[2].split(",")
    if len(values) != len(fields):
        raise Rejected(f"a call of oneDNN with {len(values)} fields where its template names {len(fields)}")
    said = dict(zip(fields, values, strict=True))
    try:
        op, name, problem = said["primitive"], said["implementation"], said["problem_desc"]
        record = {"op": op, "name": name, "dur_us": _microseconds(said["exec_time"], "ms")}
    except (KeyError, ValueError):
        raise Rejected("a call of oneDNN without primitive, implementation, problem and time") from None
    record["shape"] = _product(problem) if op == "matmul" else problem
    return record | ({"start_ts": float(ran[1]) / 1e3} if ran[1] else {})


def _product(problem: str) -> str:
    """Return `4x64:64x96` in our form, with or without batch dimensions; what is no such product as it stands."""
    parts = [part.split("x") for part in problem.split(":")[:2]]
    if len(parts) != 2 or any(len(part) < 2 or not all(map(SIZE.fullmatch, part)) for part in parts):
        return problem
    (*outer, m, k), (*_, n) = ([int(size) for size in part] for part in parts)
    return product(m, n, k, math.prod(outer))


def _of_mkl(text: str) -> dict[str, Any] | None:
    if not MKL_CALL.match(text):
        return None
    ran = MKL_RAN.fullmatch(text)
    if ran is None:
        raise Rejected("a call of MKL without its arguments and time")
    settings = dict(part.split(":", 1) for part in ran[5].split() if ":" in part)
    algo = {name.lower(): settings[name] for name in ("CNR", "NThr") if name in settings}
    record: dict[str, Any] = {"name": ran[1], "algo": algo, "dur_us": _microseconds(ran[3], ran[4])}
    sizes = ran[2].split(",")[2:5]
    if MKL_GEMM.fullmatch(ran[1]) and len(sizes) == 3 and all(map(SIZE.fullmatch, sizes)):
        n, m, k = map(int, sizes)  # column-major: what BLAS calls M is the width of torch's result
        record |= {"op": "matmul", "shape": product(m, n, k)}
    return record


def _microseconds(value: str, unit: str) -> float:
    return round(float(value) * MICROSECONDS[unit], 6)


def _spoken(path: Path, size: int) -> Iterator[Entry]:
    """Yield every line that a library printed, its record still empty; a last one without newline may be torn."""
    line, offset, rest, position, long = 0, 0, b"", 0, False
    stream_of_bytes = pieces(path, size)
    while True:
        try:
            piece, position = next(stream_of_bytes)
        except StopIteration:
            break
        except Broken as fault:
            yield Entry(line + 1, offset, rest[:LONGEST_LINE], Rejected(str(fault)), position)
            return
        *whole, rest = (rest + piece).split(b"\n")
        for raw in whole:
            line += 1
            begun, offset = offset, offset + len(raw) + 1
            if not long and len(raw) <= LONGEST_LINE and SPOKEN.match(raw):
                yield Entry(line, begun, raw.rstrip(b"\r"), {}, position)
            long = False
        if len(rest) > LONGEST_LINE:  # no library prints so long a line
            offset, rest, long = offset + len(rest), b"", True
    if not long and SPOKEN.match(rest):
        yield Entry(line + 1, offset, rest, Rejected("torn last line, no newline"), position)
