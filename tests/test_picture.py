"""The timeline as a picture: the same bytes every time, legible on any ground and for any length."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from forensics import picture
from forensics.explain import explain
from tests.story import Story

if TYPE_CHECKING:
    from pathlib import Path

A, B = (1, 2, 3, 4), (1, 2, 9, 9)


def drawn(folder: Path, story: Story, req: str = "load") -> str:
    with story.tell(folder) as store:
        written = picture.draw(explain(store, req), folder / "picture")
    return written[0].read_text(encoding="utf-8")


def said(svg: str) -> str:
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast() -> None:
    grounds = [picture.PAPER, *picture.REGIME_COLOURS.values()]
    assert min(contrast(picture.INK, ground) for ground in grounds) >= 4.5
    assert min(contrast(colour, picture.PAPER) for colour in picture.ARM_COLOURS.values()) >= 4.5


def test_the_ground_is_its_own(tmp_path: Path) -> None:
    svg = drawn(tmp_path, Story().engine().request("idle", A).request("load", B, rows=4, drift=0.25))
    width, height = re.findall(r'<svg [^>]*width="(\d+)" height="(\d+)"', svg)[0]
    assert f'<rect width="{width}" height="{height}" fill="{picture.PAPER}"/>' in svg
    assert "stroke-dasharray" in svg, "arms differ by more than colour"


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    with Story().engine().request("idle", A).request("load", B, rows=4, drift=0.25).tell(tmp_path) as store:
        found = explain(store, "load")
    first, again = ([path.read_bytes() for path in picture.draw(found, tmp_path / name)] for name in ("first", "again"))
    assert first == again
    assert all(len(data) < 400_000 for data in first)


def test_what_it_marks(tmp_path: Path) -> None:
    story = Story().engine().request("idle", A).request("load", B, rows=4, drift=0.25)
    for record in story.records:
        if record["kind"] == "step" and record["req_id"] == "load" and record["step"] == 1:
            record["resumed"] = True
        if record["kind"] == "batch" and record["batch_size"] == 4:
            record["paging_on"] = True
    text = said(drawn(tmp_path, story))
    for part in ("flip at 2: 9", "flip at 2: 3", "preempted", "paging", "exact tie", "near tie below"):
        assert part in text


@pytest.mark.parametrize(
    ("last", "flip", "window"),
    [
        (99, 50, (0, 99)),
        (9999, 5000, (4940, 5060)),
        (9999, 10, (0, 120)),
        (9999, 9999, (9879, 9999)),
        (9999, None, (0, 120)),
    ],
)
def test_a_long_run_is_drawn_around_the_flip(last: int, flip: int | None, window: tuple[int, int]) -> None:
    assert picture._window(last, flip) == window


def test_a_long_run_has_an_overview(tmp_path: Path) -> None:
    story = Story().engine().request("idle", A * 100).request("load", A * 60 + B + A * 39, rows=4, drift=0.25)
    svg = drawn(tmp_path, story)
    assert "whole run: output token, 2 a column" in said(svg)
    assert "flip at 242: 9" in said(svg)
    assert len(svg) < 200_000


def test_hostile_names(tmp_path: Path) -> None:
    svg = drawn(tmp_path, Story().engine().request("idle", A).request("<script>\x1b", B, rows=2), req="<script>\x1b")
    assert "<script" not in svg
    assert "\x1b" not in svg


def test_nothing_to_draw(tmp_path: Path) -> None:
    story = Story().engine().request("load", A)
    story.records = [record for record in story.records if record["kind"] in ("engine", "request")]
    with story.tell(tmp_path) as store:
        assert picture.draw(explain(store, "load"), tmp_path / "none") == []
