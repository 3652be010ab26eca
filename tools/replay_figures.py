"""How many requests of a real vLLM server come back bit for bit when its schedule is replayed.

Requests go to the real HTTP server in three load shapes (vllm_load.py), are recorded, and each stretch between two
idle points is replayed once; every request of it is compared, token by token, by the hash of its whole row of logits.
Then a sample is replayed with all others' ids withheld. Needs this package here, and vLLM in VLLM_PYTHON. Ended in
between, the same command goes on after the last finished shape:

    python tools/replay_figures.py OUT.json --model MODEL_DIR --python VLLM_PYTHON --count 200
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vllm_load import Load, ask_rounds, in_rounds, loads, random_ids
from vllm_server import DEFAULTS, serving

from forensics.casefile import build_case
from forensics.evidence import Evidence, gather
from forensics.incident import Incident
from forensics.load import load as ingest
from forensics.store import Store
from forensics.timeline import Thresholds
from replay.casefile import load_case
from replay.coverage import variables
from replay.host import cpu_facts

CHILD = Path(__file__).with_name("replay_windows.py")


def main() -> None:
    """Record, replay, compare, and write the figures with every miss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="interpreter with vLLM and this package")
    parser.add_argument("--count", type=int, default=200, help="requests in each shape")
    parser.add_argument(
        "--sample", type=int, default=20, help="requests whose neighbours' ids are withheld, each shape"
    )
    parser.add_argument("--apart-ms", type=float, default=25.0)
    parser.add_argument("--round", type=int, help="requests from one idle moment, with the cache emptied, to the next")
    parser.add_argument("--shapes", default="steady,bursts,mixed")
    options = parser.parse_args()
    vocabulary = int(json.loads((options.model / "config.json").read_text())["vocab_size"])
    again = (f"python tools/replay_figures.py OUT.json --model {options.model.name} --python VLLM_PYTHON "
             f"--count {options.count} --sample {options.sample} --apart-ms {options.apart_ms:g}")  # fmt: skip
    again += f" --round {options.round}" if options.round else ""
    figures = begun(options.out, {"command": again, "cpu": cpu_facts()})
    for name, shape in loads(options.count, random_ids(vocabulary), options.apart_ms / 1000).items():
        if name in options.shapes.split(",") and name not in figures["shapes"]:
            with tempfile.TemporaryDirectory() as folder:
                figures["shapes"][name] = figure(Path(folder), shape, options)
            print(name, {key: value for key, value in figures["shapes"][name].items() if key != "misses"}, flush=True)
            options.out.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


def begun(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return the shapes that the same command has measured on the same machine before it was ended."""
    if path.exists():
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if all(figures.get(name) == value for name, value in about.items()):
            return figures
    return about | {"shapes": {}}


def figure(folder: Path, shape: Load, options: argparse.Namespace) -> dict[str, Any]:
    """Return what one shape gives."""
    log = folder / "log"
    log.mkdir()
    with serving(options.python, options.model, log, "a", shape.flags) as port:
        rounds = in_rounds(shape.asks, options.round or len(shape.asks))
        recorded_s = ask_rounds(options.python, port, rounds, emptied=bool(options.round))
    with Store.in_memory() as store:
        ingest([path for path in log.iterdir() if path.suffix == ".jsonl"], store, None)
        requests = store.ask("find", since=None, until=None, replica=None, model=None, part_of_id=None, prompts=None,
                             prompt_sha256=None, output=None, output_sha256=None, finish=None, limit=None)  # fmt: skip
        rows = [store.ask("request", req_id=name).row(0, named=True) for name in requests["req_id"].to_list()]
        cases = periods(store, rows, folder)
        chosen = [row for row in rows if "warmup" not in row["req_id"]][:: max(1, len(rows) // options.sample)]
        sampled = enumerate(chosen[: options.sample])
        withheld = [write(store, row, folder / f"withheld-{at}.json") for at, row in sampled]
        recorded = {row["req_id"]: hashes(gather(store, row, Thresholds())) for row in rows}
        events = store.ask("events", run_id=rows[0]["run_id"], replica_id="a", first=0, last=1 << 40)
    preempted = events.filter(events["what"] == "preemption").height
    replayed = replay(options, cases, "recorded")
    stood_in = replay(options, withheld, "random")
    same = {name: replayed["rows"].get(name) == found for name, found in recorded.items()}
    targets = {name: stood_in["rows"].get(name) == recorded[name] for name in stood_in["targets"]}
    return {
        "requests": len(recorded),
        "tokens": sum(map(len, recorded.values())),
        "preemptions": preempted,
        "windows": len(cases),
        "bit_identical": sum(same.values()),
        "engine_steps_as_recorded": replayed["steps"],
        "with_ids_withheld": len(targets),
        "with_ids_withheld_bit_identical": sum(targets.values()),
        "recorded_s": round(recorded_s, 1),
        "replayed_s": round(replayed["seconds"], 1),
        "misses": [*replayed["why"], *stood_in["why"], *missed(same), *missed(targets)],
    }


def missed(same: dict[str, bool]) -> list[str]:
    """Return the requests that did not come back."""
    return sorted(name for name, equal in same.items() if not equal)


def periods(store: Store, rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write a case for each stretch between idle points: that of the request that leaves it last."""
    cases: list[Path] = []
    covered: set[str] = set()
    last = {row["req_id"]: steps_of(store, row) for row in rows}
    for row in sorted(rows, key=lambda one: -last[one["req_id"]]):
        if row["req_id"] not in covered:
            cases.append(write(store, row, folder / f"window-{len(cases)}.json"))
            window = json.loads(cases[-1].read_text())["incident"]["window"]
            covered |= {one["req_id"] for one in window["requests"]}
    return cases


def steps_of(store: Store, row: dict[str, Any]) -> int:
    """Return the last engine step of a request."""
    steps = store.ask("steps", run_id=row["run_id"], replica_id=row["replica_id"], req_id=row["req_id"])
    return int(steps["engine_step"].max())  # type: ignore[arg-type]


def write(store: Store, row: dict[str, Any], path: Path) -> Path:
    """Write the case of a request by itself, up to its last token."""
    target = gather(store, row, Thresholds())
    path.write_text(build_case(store, Incident(target, None, "", "no_reference")).to_json())
    return path


def hashes(evidence: Evidence) -> list[str]:
    """Return the hash of the logits row of each token."""
    return list(evidence.tokens()["logits_sha256"])


def replay(options: argparse.Namespace, cases: list[Path], contents: str) -> dict[str, Any]:
    """Replay the cases in one process; return the rows of all requests (random: of targets), and what went wrong."""
    environment = DEFAULTS | variables(load_case(cases[0])) | {"FORENSICS_RECORD_LOGITS_SHA256": "1"}
    command = [options.python, str(CHILD), str(options.model), contents, *map(str, cases)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.strip().splitlines()[-1].removeprefix("RESULT ")))


if __name__ == "__main__":
    main()
