"""The import table of the design, as a test: who may import whom, in the project and outside."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path.relative_to(ROOT).as_posix() for room in ("forensics", "replay") for path in (ROOT / room).rglob("*.py")
)

# First prefix that matches holds. Third parties that a room may use; the standard library always may.
THIRD_PARTY = {
    "forensics/cli/": {"typer"},
    "forensics/console.py": {"rich"},
    "forensics/reports/terminal.py": {"rich"},
    "forensics/reports/": set(),
    "forensics/store.py": {"duckdb", "polars", "pyarrow"},
    "forensics/picture.py": {"altair"},
    "forensics/map_picture.py": {"altair"},
    "forensics/compression.py": {"zstandard"},
    "forensics/digest.py": {"rfc8785"},
    "forensics/values.py": {"rfc8785"},
    "forensics/": {"polars", "pyarrow"},
    "replay/engines/": {"torch", "transformers", "vllm", "huggingface_hub"},
    "replay/factors/": {"torch", "transformers"},
    "replay/host.py": {"torch"},
    "replay/reduction_tree.py": {"torch"},
    "replay/triton_product.py": {"torch", "triton"},
    "replay/nvml.py": {"pynvml"},
    "replay/segments.py": {"zstandard"},
    "replay/": set(),
}
# Rooms whose members never import a sibling.
ROOMS = ("forensics/ingest/", "forensics/detectors/", "forensics/reports/", "forensics/review/", "replay/factors/")
FROM_REPLAY = {"replay.case", "replay.cublaslt_log", "replay.prove"}


def imports(path: str) -> set[str]:
    """Return the dotted names that a file imports at run time; imports for types only do not count."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    guarded = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and getattr(branch.test, "id", "") == "TYPE_CHECKING"
        for part in branch.body
        for node in ast.walk(part)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def allowed(path: str) -> set[str]:
    return next(names for prefix, names in THIRD_PARTY.items() if path.startswith(prefix))


def test_the_rooms_are_there() -> None:
    assert len(FILES) > 40
    assert all(any(path.startswith(room) for path in FILES) for room in ROOMS)


@pytest.mark.parametrize("path", FILES)
def test_third_party(path: str) -> None:
    tops = {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"forensics", "replay"}
    assert tops <= allowed(path), f"{path} may not import {sorted(tops - allowed(path))}"


@pytest.mark.parametrize("path", FILES)
def test_direction(path: str) -> None:
    names = imports(path)
    if path.startswith("replay/"):
        assert not {name for name in names if name.split(".")[0] == "forensics"}, "replay imports nothing of forensics"
        return
    used = {name for name in names if name.split(".")[0] == "replay"}
    assert all(any(name == one or name.startswith(one + ".") for one in FROM_REPLAY) for name in used), used
    if not path.startswith("forensics/cli/"):
        assert not {name for name in names if name.startswith("forensics.cli")}


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.startswith(ROOMS) and not path.endswith("__init__.py")]
)
def test_members_never_import_a_sibling(path: str) -> None:
    folder = path.rpartition("/")[0]
    siblings = {one.removesuffix(".py").replace("/", ".") for one in FILES if one.rpartition("/")[0] == folder}
    assert not {name for name in imports(path) if any(name == one or name.startswith(one + ".") for one in siblings)}


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("forensics/")])
def test_no_torch_at_import(path: str) -> None:
    assert not {name for name in imports(path) if name.split(".")[0] in ("torch", "transformers", "vllm")}
