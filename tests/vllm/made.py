"""A case of vLLM that nobody recorded: a request of the tiny model among others, made by hand. Nothing of its bits."""

import json
import os
import subprocess
import sys

from arms import MODEL, ROOT
from serving import QUIET

from replay.case import Arm, Asked, Case, Window
from replay.coverage import variables

TOKENS = 12
CFG = {"temperature": 0, "max_tokens": 40, "ignore_eos": True}
COMPANY = {"company.requests": "incident", "engine.orders": "none"}
ALONE = COMPANY | {"company.requests": "alone"}
PROMPT = tuple(11 * at % 200 + 5 for at in range(50))

RUN = """
import json, os, sys
os.environ["FORENSICS_RECORD_LOGITS_SHA256"] = "1"
from pathlib import Path
from replay.casefile import load_case
from replay.engines.vllm_replay import Engine
from replay.trial import Treatment
engine = Engine(sys.argv[1])
engine.case = load_case(Path(sys.argv[2]))
found = []
for treatment in json.loads(sys.argv[3]):
    trace = engine.run(Treatment(**treatment))
    found.append({"bits": trace.logits_sha256, "tokens": trace.tokens, "missing": trace.missing,
                  "observed": trace.observed, "details": trace.details, "departure": trace.departure})
"""
SAY = 'print("RESULT " + json.dumps(found))\n'


def asked(name, step, tokens, **more):
    ids = tuple(7 * at % 190 + len(name) + at % 3 + 5 for at in range(tokens))
    return Asked(name, step, tokens, CFG, ids, arrival_ts=float(step), **more)


def made_case(requests=None, *, limits=(64, 8), blocks=64, schedule=()):
    """Return a case: the request i, by default among four others. limits: tokens and rows of a launch."""
    own = Asked("i", 2, len(PROMPT), CFG, PROMPT, arrival_ts=2.0)
    others = [asked("a", 0, 20), asked("bb", 1, 45), own, asked("ccc", 2, 33), asked("dddd", 6, 70)]
    window = Window(0, "engine_start", tuple(requests(own) if requests else others), schedule=schedule)
    engine = {
        "engine": "vllm", "num_threads": 1, "kv_blocks_total": blocks,
        "scheduler_limits": {"max_num_batched_tokens": limits[0], "max_num_seqs": limits[1]},
        "config": {
            "model_config": {"dtype": "bfloat16", "max_model_len": 256, "enforce_eager": True},
            "cache_config": {"block_size": 32, "enable_prefix_caching": False},
            "scheduler_config": {"async_scheduling": False},
        },
    }  # fmt: skip
    incident = Arm("run", "i", COMPANY, output_token_ids=(0,) * TOKENS, window=window)
    alone = Window(0, "engine_start", (Asked(**vars(own) | {"arrival_step": 0}),))
    return Case("", PROMPT, CFG, "argmax", engine, incident, Arm("alone", "i", ALONE, synthetic=True, window=alone))


def run_case(tmp_path, case, *treatments, then=""):
    """Run treatments in one process, one after the other, then a script that may add to what is `found`."""
    path = tmp_path / "case.json"
    path.write_text(case.to_json())
    env = os.environ | QUIET | variables(case) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN + then + SAY, MODEL, str(path), json.dumps(treatments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(one for one in done.stdout.splitlines() if one.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))
