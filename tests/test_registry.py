"""Every member of every room offers what its room promises."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import forensics.detectors
import forensics.ingest
import forensics.reports
from forensics.causes import BESIDE, CAUSES, CONDITIONS
from forensics.findings import Rung
from forensics.registry import members, names

ROOT = Path(__file__).parent.parent
DETECTORS = members(forensics.detectors)


@pytest.mark.parametrize("room", [forensics.detectors, forensics.reports, forensics.ingest])
def test_members_say_what_they_are(room: object) -> None:
    found = members(room)  # type: ignore[arg-type]
    assert found
    for name, module in found.items():
        assert module.__doc__, name
        assert module.__doc__.splitlines()[0], f"{name}: the docstring's first line is its help"


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_detector(name: str) -> None:
    module = DETECTORS[name]
    assert isinstance(module.RUNG, Rung)
    assert module.SEEN in ("real engine", "simulated only")
    assert list(inspect.signature(module.detect).parameters) == ["incident"]
    source = Path(inspect.getfile(module)).read_text(encoding="utf-8")
    assert f'"{name}"' in source, "a detector yields findings under its own name"


def test_reports_render() -> None:
    for name, module in members(forensics.reports).items():
        assert list(inspect.signature(module.render).parameters)[:2] == ["explanation", "out"], name


def test_every_code_of_the_chain_has_a_detector() -> None:
    named = {code for causes in CAUSES.values() for code in causes} | set(CAUSES) | set(CONDITIONS)
    assert named <= set(names(forensics.detectors))


def test_every_detector_can_reach_the_flip() -> None:
    reaching = {"token_flip"}
    for _ in CAUSES:
        reaching |= {cause for effect, causes in CAUSES.items() if effect in reaching for cause in causes}
    assert not reaching & set(BESIDE)
    assert reaching | set(BESIDE) == set(DETECTORS)


def test_every_code_is_documented() -> None:
    text = (ROOT / "docs" / "causality.md").read_text(encoding="utf-8")
    for name in DETECTORS:
        assert f"`{name}`" in text, name
