"""docs/accuracy.md: the tables of one score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.accuracy.baselines import RULES
from tests.accuracy.tally import OUTCOMES, Marked, confusions, grouped, rates

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

HEAD = """# Attribution accuracy

Written by `make score` (`python -m tools.score`); every row that is counted here stands in
[evidence/accuracy.json](evidence/accuracy.json). Intervals are 95 % Wilson intervals; they take incidents to be
independent, which those of one grid are only by their seeds.

**What counts.** *right*: the root cause that was set, or `none` / `undetermined` where that is the truth. *abstained*:
`undetermined` where a cause was to be found. *missed*: `none` where something diverged. *downstream*: something that
the cause did change, named as the root. *false*: a cause where there was none, or one that the world did not have.
Everything but *right* and *abstained* is wrong.

**What is simulated.** `tests/simulator/` follows physics and the execution contract, and shares neither code nor
thresholds with the detectors. The truth is by intervention: the same world without the cause answers as the reference
does. Both arms are named in the question (`--against`): which reference the program would choose is not scored. A
simulated world is simpler than a real one, so these rates are an upper bound of what to expect. Of the real
executions, the *recorded* incidents have expectations written by people who had seen the analyser; of the *labelled*
ones the cause was set by a program (`tools/label_real.py`), and the analyser was not asked.
"""
MEANING = {
    "complete": "one cause, everything recorded, no decoys",
    "decoys": "one cause at moderate strength, and three innocent differences",
    "zero": "nothing planted: nothing diverges, with and without four innocent differences",
    "loss": "one cause at moderate strength, hot-path records lost in bursts",
    "blind": "one cause, and the recorder sees no field that could tell: `undetermined` is right",
    "fleet": "one cause in one of four replicas with traffic of their own",
    "clocks": "a fabric cause, clocks of two hosts apart",
    "several": "two causes at once: right is the one that gives this flip by itself, or either",
}


def render(marks: Sequence[Marked], seeds: str, command: str) -> str:
    """Return the document."""
    return "\n".join([HEAD, f"Simulated seeds: {seeds}. Command: `{command}`.\n", *_sections(marks)]).rstrip() + "\n"


def _sections(marks: Sequence[Marked]) -> Iterator[str]:
    real, simulated = [one for one in marks if one.real], [one for one in marks if not one.real]
    if real:
        yield from ["## Real executions\n", *_table("source", real, lambda one: one.part)]
        yield from ["By what was set:\n", *_table("cause", real, lambda one: f"{one.part}: {one.cause}")]
    if simulated:
        yield from ["## Simulated\n", *(f"* `{part}`: {text}" for part, text in MEANING.items()), ""]
        yield from _table("part", simulated, lambda one: one.part)
        caused = [one for one in simulated if one.part in ("complete", "decoys") and one.has_cause]
        yield "By how the arms differ without the cause (complete and decoys, where the cause flipped a token):\n"
        yield from _table("background", caused, lambda one: one.background)
        yield from ["By strength:\n", *_table("level", caused, lambda one: one.level)]
        yield from ["By share of records lost:\n"]
        lossy = [one for one in simulated if one.part == "loss" or (one.part == "complete" and one.level == "moderate")]
        yield from _table("lost", [one for one in lossy if one.has_cause], lambda one: f"{one.loss:.0%}")
        yield from ["By cause:\n", *_table("cause", caused, lambda one: one.cause)]
    yield from ["## Against public rules\n", "Incidents with a cause, nothing lost.\n"]
    yield from _compared(marks)
    wrong = confusions(marks)
    if wrong:
        yield from ["## What was said instead\n", "| set | right | said | times |", "|---|---|---|--:|"]
        yield from (f"| {cause} | `{roots}` | `{said}` | {number} |" for cause, roots, said, number in wrong)


def _table(name: str, marks: Sequence[Marked], key: Callable[[Marked], Hashable]) -> Iterator[str]:
    """Yield a table of outcomes by a key; right and false with their intervals."""
    yield f"| {name} | " + " | ".join(OUTCOMES) + " |"
    yield "|---|---|--:|--:|--:|---|"
    for value, group in grouped(marks, key).items():
        found = rates(group).items()
        cells = [str(rate) if outcome in ("right", "false") else str(rate.hits) for outcome, rate in found]
        yield f"| {value} | " + " | ".join(cells) + " |"
    yield ""


def _compared(marks: Sequence[Marked]) -> Iterator[str]:
    yield "| rule | on | right | abstained | wrong |"
    yield "|---|---|---|--:|---|"
    groups = {"real": [one for one in marks if one.real], "simulated": [one for one in marks if not one.real]}
    for where, group in groups.items():
        fair: Sequence[Marked] = [one for one in group if one.has_cause and not one.loss]
        for rule in (None, *RULES) if fair else ():
            found = rates(fair, rule)
            wrong = sum(found[name].hits for name in ("missed", "downstream", "false"))
            name = rule or "**forensics**"
            yield f"| {name} | {where} | {found['right']} | {found['abstained'].hits} | {wrong} of {len(fair)} |"
    yield ""


def evidence(marks: Sequence[Marked], seeds: str, command: str) -> dict[str, Any]:
    """Return the document behind the tables."""
    rows = [vars(one) | {"outcome": one.outcome()} for one in marks]
    return {"format": "inference-forensics/accuracy/1", "command": command, "seeds": seeds, "marks": rows}
