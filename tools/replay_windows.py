"""The half of replay_figures.py that needs vLLM: replay each case's window once, print what every request got."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from replay.casefile import load_case
from replay.engines.vllm_replay import Engine
from replay.trial import Treatment


def main(model: str, contents: str, paths: list[str]) -> None:
    """Print {rows: request → hashes of its logits rows, targets, steps, seconds, why: faults} as one line."""
    engine = Engine(model)
    rows: dict[str, list[str]] = {}
    targets, why, steps = [], [], 0
    started = time.monotonic()
    for path in paths:
        engine.case = load_case(Path(path))
        plan = dict(engine.case.incident.plan) | ({"company.contents": "random"} if contents == "random" else {})
        trace = engine.run(Treatment(plan))
        target = engine.case.incident.req_id
        targets.append(target)
        steps += trace.details.get("steps_as_recorded", 0)
        why += [f"{target}: {one}" for one in (trace.missing, trace.departure) if one]
        assert engine.case.incident.window is not None
        names = [target] if contents == "random" else [one.req_id for one in engine.case.incident.window.requests]
        if engine.live is not None and not trace.missing:
            rows |= {name: [one["logits_sha256"] for one in engine.live.notes.tokens(name)] for name in names}
    found = {"rows": rows, "targets": targets, "why": why, "steps": steps, "seconds": time.monotonic() - started}
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
