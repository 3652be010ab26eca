"""Arms of the recorder's tests: an engine in a process of its own, and what its recording must satisfy."""

import collections
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jsonschema
from serving import QUIET, lines_of, of

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "fixtures/models/tiny-llama")
DRIVER = Path(__file__).with_name("drive_engine.py")
SMALL_POOL = ("--blocks", "12")
"""11 usable blocks of 32 tokens for six requests of up to 105: some must be preempted."""


def drive(model, *flags, record=None, **environment):
    """Run one arm in a process of its own; return its result, its log lines and what it said."""
    assert any(
        found.value == "replay.engines.vllm:install" for found in metadata.entry_points(group="vllm.general_plugins")
    ), "the plugin is not installed here: pip install --no-deps -e ."
    env = {name: value for name, value in os.environ.items() if not name.startswith("FORENSICS_")} | QUIET | environment
    if record is not None:
        env["FORENSICS_RECORD"] = str(record)
    done = subprocess.run(
        [sys.executable, str(DRIVER), model, *flags], env=env, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT ")), lines_of(record), done.stderr


def merged_requests(lines):
    requests = collections.defaultdict(dict)
    for line in of(lines, "request"):
        requests[line["req_id"]] |= line
    return requests


def contract_faults(lines):
    """Return how lines break schemas/, unknown fields included."""
    faults = []
    schemas = {
        kind: json.loads((ROOT / f"schemas/{kind}.v1.json").read_text()) for kind in {one["kind"] for one in lines}
    }
    validators = {kind: jsonschema.Draft202012Validator(schema) for kind, schema in schemas.items()}
    factors = {factor["name"] for factor in json.loads((ROOT / "schemas/factors.v1.json").read_text())["factors"]}
    for line in lines:
        kind = line["kind"]
        faults += [f"{kind}: {error.message}" for error in validators[kind].iter_errors(line)]
        faults += [f"{kind}: unknown field {name}" for name in line.keys() - schemas[kind]["properties"].keys()]
        faults += [f"{kind}: unknown factor {name}" for name in line.get("plan", {}).keys() - factors]
    return faults
