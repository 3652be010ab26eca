"""One cuBLASLt tactic: the nine values that pick a kernel, as text, as a log line shows them, and as numbers.

Canonical text, all nine always: `id=66,tile=64x16,stages=64xAUTO,splitk=1,reduction=none,swizzle=0,custom=1,
inner=undefined,cluster=4x1x1`. Names, orders and numbers are those of cublasLt.h 13.1.0.3 (cublasLtMatmulTile_t and so
on), which has only ever added to them. A log line leaves out what is at its default. Standard library.
"""

from __future__ import annotations

import functools
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

MOST_DIGITS = 9


class TacticError(ValueError):
    """The text names no tactic; the message says what is wrong with it."""


@dataclass(frozen=True)
class Tactic:
    """The configuration of one cuBLASLt algorithm; as a dictionary it is `algo` of a kernel record.

    tile, stages, inner, cluster and reduction are names.
    """

    id: int
    tile: str = "undefined"
    stages: str = "undefined"
    splitk: int = 1
    reduction: str = "none"
    swizzle: int = 0
    custom: int = 0
    inner: str = "undefined"
    cluster: str = "auto"

    def __str__(self) -> str:
        """Return the canonical text."""
        return ",".join(f"{name}={value}" for name, value in asdict(self).items())

    def settings(self) -> dict[str, int]:
        """Return what must be set on a fresh algorithm of this id: field → number, defaults left out.

        An algorithm need not know every attribute (those of nvjet know no split-K), so a default is never set.
        """
        numbers = {field.name: _number(field.name, getattr(self, field.name)) for field in fields(self)[1:]}
        return {name: number for name, number in numbers.items() if number != DEFAULTS[name]}


def parse(text: str) -> Tactic:
    """Return the tactic of a canonical text or of a line of the cuBLASLt log. Raises TacticError."""
    if found := re.search(r"\balgo=\[([^\]]*)\]", text):
        return _from_pairs(found[1].replace(" | ", "|").split(), LOG_FIELDS)
    return _from_pairs(text.split(","), {field.name: field.name for field in fields(Tactic)})


def from_numbers(numbers: dict[str, int]) -> Tactic:
    """Return the tactic of attribute numbers, as cublasLtMatmulAlgoConfigGetAttribute gives them."""
    known: dict[str, Any] = {name: _value(name, str(number)) for name, number in numbers.items()}
    return Tactic(**known)


def _from_pairs(pairs: list[str], names: dict[str, str]) -> Tactic:
    known: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in names:
            raise TacticError(
                f"{pair[:40]!r} is no field of a cuBLASLt tactic; give {', '.join(names)}, each as NAME=VALUE"
            )
        if names[name] in known:
            raise TacticError(f"{name} is given twice")
        known[names[name]] = _value(names[name], value)
    if "id" not in known:
        raise TacticError(f"a cuBLASLt tactic needs its {next(iter(names))}")
    return Tactic(**known)


def _value(field: str, text: str) -> int | str:
    """Return the value of a field from its name, from the log's longer name, or from its number."""
    table = TABLES.get(field, dict)()
    if re.fullmatch(f"[0-9]{{1,{MOST_DIGITS}}}", text):
        number = int(text)
        if field not in TABLES:
            return number
        name = next((name for name, known in table.items() if known == number), None)
    else:
        short = text.removeprefix(PREFIXES.get(field, ""))
        name = next((one for one in (short, short.lower()) if one in table), None)
    if name is None:
        raise TacticError(f"{field} cannot be {text[:40]!r}" + (f"; {HINTS[field]}" if field in HINTS else ""))
    return name


def _number(field: str, value: int | str) -> int:
    return value if isinstance(value, int) else TABLES[field]()[value]


@functools.cache
def tiles() -> dict[str, int]:
    """Return tile name → cublasLtMatmulTile_t.

    The header lists 35 by hand, then every rows × cols in steps of 8 × 64 up to 49152 elements, then in steps of
    64 × 8 up to 65536, each time without those that it has, and at last four large ones.
    """
    narrow = [f"{r}x{c}" for r in range(8, 769, 8) for c in range(64, 769, 64) if r * c <= 49152]
    wide = [f"{r}x{c}" for r in range(64, 769, 64) for c in range(8, 769, 8) if r * c <= 65536]
    large = ["256x512", "256x1024", "512x512", "512x1024"]
    return _numbered(["undefined", *FIRST_TILES.split(), *narrow, *wide, *large])


@functools.cache
def stages() -> dict[str, int]:
    """Return stages name → cublasLtMatmulStages_t; the numbers 29 and 30 are not in use."""
    regular = [f"{size}x{count}" for size in (16, 32, 64, 128) for count in range(1, 7)]
    first = _numbered(["undefined", *regular, "32x10", "8x4", "16x10", "8x5"])
    later = ["8x3", *(f"{size}xAUTO" for size in (8, 16, 32, 64, 128, 256, 768))]
    return first | {name: number for number, name in enumerate(later, start=31)}


@functools.cache
def clusters() -> dict[str, int]:
    """Return cluster name → cublasLtClusterShape_t; the number 1 is not in use."""
    return {"auto": 0} | {f"{shape}x1": number for number, shape in enumerate(CLUSTERS.split(), start=2)}


@functools.cache
def inner_shapes() -> dict[str, int]:
    """Return inner shape name → cublasLtMatmulInnerShape_t."""
    return _numbered(["undefined", "MMA884", "MMA1684", "MMA1688", "MMA16816"])


@functools.cache
def reductions() -> dict[str, int]:
    """Return reduction name → cublasLtReductionScheme_t."""
    return {"none": 0, "inplace": 1, "compute_type": 2, "output_type": 4}


def _numbered(names: list[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


FIRST_TILES = """8x8 8x16 16x8 8x32 16x16 32x8 8x64 16x32 32x16 64x8 32x32 32x64 64x32 32x128 64x64 128x32 64x128 128x64
64x256 128x128 256x64 64x512 128x256 256x128 512x64 64x96 96x64 96x128 128x160 160x128 192x128 128x192 128x96 32x256
256x32"""
CLUSTERS = """1x1 2x1 4x1 1x2 2x2 4x2 1x4 2x4 4x4 8x1 1x8 8x2 2x8 16x1 1x16 3x1 5x1 6x1 7x1 9x1 10x1 11x1 12x1 13x1 14x1
15x1 3x2 5x2 6x2 7x2 1x3 2x3 3x3 4x3 5x3 3x4 1x5 2x5 3x5 1x6 2x6 1x7 2x7 1x9 1x10 1x11 1x12 1x13 1x14 1x15"""
TABLES = {"tile": tiles, "stages": stages, "reduction": reductions, "inner": inner_shapes, "cluster": clusters}
DEFAULTS = {
    "tile": 0, "stages": 0, "splitk": 1, "reduction": 0, "swizzle": 0, "custom": 0, "inner": 0, "cluster": 0,
}  # fmt: skip
PREFIXES = {
    "tile": "MATMUL_TILE_", "stages": "MATMUL_STAGES_", "reduction": "REDUCTION_SCHEME_",
    "inner": "MATMUL_INNER_SHAPE_", "cluster": "CLUSTER_SHAPE_",
}  # fmt: skip
HINTS = {
    "tile": "rows x columns, as 64x128", "stages": "depth x count, as 64x3 or 64xAUTO",
    "cluster": "as 2x1x1, or auto", "reduction": "none, inplace, compute_type or output_type",
    "inner": "MMA884, MMA1684, MMA1688, MMA16816 or undefined",
}  # fmt: skip
LOG_FIELDS = {
    "algoId": "id", "tile": "tile", "stages": "stages", "numSplitsK": "splitk", "reductionScheme": "reduction",
    "ctaSwizzling": "swizzle", "customOption": "custom", "innerShape": "inner", "clusterShape": "cluster",
}  # fmt: skip
