"""Incidents through the program, each beside its truth."""

from __future__ import annotations

import tempfile
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from tests.accuracy.asking import Answer, ask
from tests.accuracy.tally import Marked
from tests.simulator.incident import Setting, make

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.accuracy.labelled import Pair


def simulated(part: str, setting: Setting) -> Marked:
    """Simulate one incident in a folder of its own, ask, and throw the log away."""
    with tempfile.TemporaryDirectory() as name:
        truth = make(setting, Path(name))
        [answer] = ask(Path(name) / "log", [(truth.request, truth.against)])
    cause = " + ".join(setting.causes)
    return Marked(False, part, cause, setting.level, setting.background, setting.loss, setting.seed, truth.roots,
                  truth.chain, answer.root_cause, answer.chain, answer.baselines)  # fmt: skip


def real(pairs: Iterable[Pair]) -> Iterator[Marked]:
    """Ask about the pairs of every real log."""
    for log, group in groupby(pairs, key=lambda one: one.log):
        asked = list(group)
        answers: list[Answer] = ask(log, [(one.request, one.against) for one in asked])
        for pair, answer in zip(asked, answers, strict=True):
            yield Marked(True, pair.source, pair.cause, "", "", 0.0, 0, pair.roots, (), answer.root_cause, answer.chain,
                         answer.baselines)  # fmt: skip
