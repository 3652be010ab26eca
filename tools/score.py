"""Score the analyser on known causes: simulated incidents, and every labelled real execution.

Writes docs/accuracy.md and docs/evidence/accuracy.json. `--development` uses the seeds that are open to developers and
writes nothing unless --out is given; the seeds of the score are for the score alone (tests/accuracy/grid.py).

    python -m tools.score --rounds 2
    python -m tools.score --development --cause rank_straggler --every 3
    python -m tools.score --no-simulated --real LABELLED
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from tests.accuracy import labelled, report, scoring
from tests.accuracy.grid import DEVELOPMENT, SCORED, settings
from tests.accuracy.tally import OUTCOMES, Marked, confusions, rates

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Score, print the rates, and write the documents."""
    options = _options()
    seeds = DEVELOPMENT if options.development else SCORED
    marks = list(scoring.real(_pairs(options.real)))
    if options.simulated:
        marks += _simulated(seeds, options)
    if not marks:
        raise SystemExit("nothing to score: no labelled execution found, and --no-simulated")
    _print(marks)
    out = options.out or (None if options.development else ROOT / "docs")
    if out is not None:
        command = "python -m tools.score " + " ".join(sys.argv[1:])
        told = (
            f"{seeds.start} to {seeds.stop - 1} ({'development' if options.development else 'scored'}; taken in order)"
        )
        (out / "evidence").mkdir(parents=True, exist_ok=True)
        (out / "accuracy.md").write_text(report.render(marks, told, command.strip()), encoding="utf-8")
        document = report.evidence(marks, told, command.strip())
        rows = ",\n".join(json.dumps(one, ensure_ascii=False) for one in document.pop("marks"))
        text = json.dumps(document, ensure_ascii=False)[:-1] + ', "marks": [\n' + rows + "\n]}\n"
        (out / "evidence" / "accuracy.json").write_text(text, encoding="utf-8")
        print(f"written: {out / 'accuracy.md'}, {out / 'evidence' / 'accuracy.json'}", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="how often the grid is gone through")
    parser.add_argument("--every", type=int, default=1, help="only every n-th incident of the grid")
    parser.add_argument("--cause", action="append", help="only incidents in which this is planted; repeatable")
    parser.add_argument("--part", action="append", help="only this part of the grid; repeatable")
    parser.add_argument("--development", action="store_true", help="use the seeds that are open to developers")
    parser.add_argument("--no-simulated", dest="simulated", action="store_false", help="only real executions")
    parser.add_argument(
        "--real", type=Path, action="append", default=[], help="folder of labelled executions; repeatable"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="folder for accuracy.md and evidence/accuracy.json")
    return parser.parse_args()


def _pairs(folders: list[Path]) -> list[labelled.Pair]:
    pairs = list(labelled.recorded(ROOT / "fixtures/incidents"))
    for folder in [ROOT / "fixtures/labelled", *folders]:
        pairs += labelled.labelled(folder)
    return pairs


def _simulated(seeds: range, options: argparse.Namespace) -> list[Marked]:
    wanted = [
        one for one in settings(seeds, options.rounds)
        if (not options.cause or set(options.cause) & set(one[1].causes))
        and (not options.part or one[0] in options.part)
    ]  # fmt: skip
    wanted = list(islice(wanted, 0, None, options.every))
    found = []
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for number, mark in enumerate(pool.map(scoring.simulated, *zip(*wanted, strict=True)), start=1):
            found.append(mark)
            said = f"{mark.said} ({mark.outcome()})"
            print(
                f"{number}/{len(wanted)} {mark.part} {mark.cause} {mark.level} {mark.background}: {said}",
                file=sys.stderr,
            )
    return found


def _print(marks: list[Marked]) -> None:
    for name, group in (
        ("real", [one for one in marks if one.real]),
        ("simulated", [one for one in marks if not one.real]),
    ):
        if group:
            found = rates(group)
            print(f"{name}: " + ", ".join(f"{outcome} {found[outcome]}" for outcome in OUTCOMES))
    for cause, roots, said, number in confusions(marks):
        print(f"  {number} × {cause}: {said} instead of {roots}")


if __name__ == "__main__":
    main()
