"""Prove every answer that a real vLLM server gives alone otherwise than under load.

Every prompt is asked alone and under load (served_pairs.py). Each pair of answers that differ goes the way of
`forensics replay`: case, `python -m replay`, verdict. Kept are the outcome, the fewest neighbours, and what the proof
took beside what the recorded window had taken. Needs this package with its replay extra here, and vLLM in VLLM_PYTHON:

    python tools/prove_served.py OUT.json --model MODEL_DIR --python VLLM_PYTHON --work DIR

It can be ended at any time; the same command goes on after the last finished proof. DIR keeps logs and verdicts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import sys
import time
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

from served_pairs import pair, record, words
from vllm_load import loads
from vllm_server import DEFAULTS

from forensics.casefile import build_case
from forensics.errors import ForensicsError
from forensics.replaying import replay
from forensics.store import Store
from replay.host import cpu_facts, library_versions, weights_sha256

INTERRUPTED = 130


def main() -> None:
    """Record each shape, prove what differs, a pair of each shape in turn; write every result as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="interpreter with vLLM and this package")
    parser.add_argument("--work", type=Path, required=True, help="folder of its own for logs, cases and verdicts")
    parser.add_argument("--count", type=int, default=100, help="requests in each shape")
    parser.add_argument("--apart-ms", type=float, default=60.0)
    parser.add_argument("--shapes", default="steady,bursts,mixed")
    parser.add_argument("--most", type=int, default=1000, help="pairs to prove; the order is random, from a fixed seed")
    options = parser.parse_args()
    os.environ |= DEFAULTS | os.environ
    about = {
        "command": f"python tools/prove_served.py OUT.json --model {options.model.name} --python VLLM_PYTHON "
        f"--work DIR --count {options.count} --apart-ms {options.apart_ms:g} --shapes {options.shapes}",
        "machine": {"cpu": cpu_facts(), "versions": library_versions(), "threads": 1},
        "model": {"name": options.model.name, "weights_sha256": weights_sha256(options.model)},
    }
    evidence = begun(options.out, about)
    for name, shape in loads(options.count, words(options.model), options.apart_ms / 1000).items():
        if name in options.shapes.split(",") and name not in evidence["shapes"]:
            shutil.rmtree(options.work / name, ignore_errors=True)  # what is left of a recording that did not end
            evidence["shapes"][name] = record(options.python, options.model, options.work / name, shape)
            save(options.out, evidence)
    done = {one["request"] for one in evidence["pairs"]}
    for shape_name, request in turns(evidence)[: options.most]:
        if request not in done:
            evidence["pairs"].append({"shape": shape_name} | proof(options, shape_name, request))
            save(options.out, evidence)
            print(json.dumps(evidence["pairs"][-1]), flush=True)
    print(summary(evidence))


def begun(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return what the same command has measured of the same model on the same machine, if it was ended before."""
    if path.exists():
        evidence: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if all(evidence.get(name) == value for name, value in about.items()):
            return evidence
    return about | {"shapes": {}, "pairs": []}


def turns(evidence: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (shape, request) of all pairs that differ: one of each shape in turn, in an order by chance."""
    shuffled = []
    for name, shape in evidence["shapes"].items():
        random.Random(name).shuffle(order := list(shape["differ"]))  # noqa: S311 - the same order every time
        shuffled.append([(name, request) for request in order])
    return [one for row in zip_longest(*shuffled) for one in row if one is not None]


def proof(options: argparse.Namespace, shape: str, request: str) -> dict[str, Any]:
    """Replay one pair as `forensics replay` does; return the verdict in short, and what it took."""
    folder = options.work / shape
    with Store.open(folder / "forensics.duckdb") as store:
        try:
            case = build_case(store, pair(store, request))
        except ForensicsError as error:
            return {"request": request, "outcome": "no_case", "claim": str(error)}
        window = case.incident.window
        assert window is not None
        first, last = window.schedule[0][0], window.schedule[-1][0]
        launches = store.ask("batches", run_id=case.incident.run_id, replica_id="load", first=first, last=last)
    begin, end = launches.row(0, named=True), launches.row(-1, named=True)
    started, cpu = time.perf_counter(), cpu_of_children()
    try:
        verdict = replay(case, folder / "verdicts", options.python, ["--model", str(options.model)]).document
    except ForensicsError as error:
        if error.exit_code == INTERRUPTED:
            raise SystemExit("ended; the same command goes on") from None
        return {"request": request, "outcome": "no_verdict", "claim": str(error)}
    seconds, cpu = time.perf_counter() - started, cpu_of_children() - cpu
    neighbours, rounding = verdict["neighbours"], verdict["rounding"]
    return {
        "request": request,
        "flip": case.flip_index,
        "window": {
            "requests": len(window.requests), "engine_steps": len(window.schedule),
            "seconds": round(end["ts"] + end["step_ms"] / 1000 - begin["ts"], 2),
        },
        "outcome": verdict["outcome"], "claim": verdict["claim"], "minimal": verdict["minimal"],
        "factors": [one["factor"] for one in verdict["factors"]],
        "controls_failed": [one["name"] for one in verdict["controls"] if one["passed"] is False],
        "neighbours": neighbours and {name: neighbours[name] for name in (
            "of", "fewest", "carry", "minimal", "removed", "contents_matter", "detail")},
        "rounding": rounding and {name: rounding[name] for name in ("answer", "fp32_agrees", "ulps")},
        "bits_changed_in_repeats": verdict["repeats"] and verdict["repeats"]["changed"],
        "trials": len({one["execution"] for one in verdict["trials"]}),
        "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1),
    }  # fmt: skip


def cpu_of_children() -> float:
    """Return the CPU seconds of all processes that have ended: on a busy machine they say more than the clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def save(path: Path, evidence: dict[str, Any]) -> None:
    """Write what there is so far, whole or not at all."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(evidence, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)


def summary(evidence: dict[str, Any]) -> str:
    """Return the figures in a few lines."""
    lines = []
    for name, shape in evidence["shapes"].items():
        tried = [one for one in evidence["pairs"] if one["shape"] == name]
        lines.append(f"{name}: {len(shape['differ'])} of {shape['requests']} differ from idle; {len(tried)} tried, "
                     f"{sum(one['outcome'] == 'proven' for one in tried)} proven")  # fmt: skip
    lines += [f"{one['request']}: {one['outcome']}: {one['claim']}" for one in evidence["pairs"]
              if one["outcome"] != "proven"]  # fmt: skip
    proven = [one for one in evidence["pairs"] if one["outcome"] == "proven"]
    if not proven:
        return "\n".join(lines)
    lines.append(f"factors: {dict(Counter(', '.join(one['factors']) for one in proven))}")
    crowds = [one["neighbours"] for one in proven if one["neighbours"]]
    sizes = Counter((one["carry"], len(one["fewest"])) for one in crowds)
    lines.append("fewest neighbours: " + ", ".join(f"{size} ({what}): {times}" for (what, size), times
                                                   in sorted(sizes.items())))  # fmt: skip
    lines.append(f"of others in the window: {spread([one['of'] for one in crowds])}")
    for what in ("removed", "minimal", "contents_matter"):
        lines.append(f"{what}: {dict(Counter(str(one[what]) for one in crowds))}")
    for what in ("trials", "seconds", "cpu_seconds"):
        lines.append(f"{what} a proof: {spread([one[what] for one in proven])}")
    lines.append(f"recorded windows, seconds: {spread([one['window']['seconds'] for one in proven])}")
    times = [one["seconds"] / one["window"]["seconds"] for one in proven]
    each = [one["seconds"] / one["trials"] / one["window"]["seconds"] for one in proven]
    lines.append(f"a proof in windows: {spread(times)}; a trial in windows: {spread(each)}")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return smallest, median and largest."""
    return f"{min(values):.3g} to {max(values):.3g}, median {statistics.median(values):.3g}" if values else "none"


if __name__ == "__main__":
    main()
