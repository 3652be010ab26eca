"""A run behind the real HTTP server, replayed step by step in another process: the same logits, or a reason."""

import asyncio
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest

if getattr(importlib.util.find_spec("vllm"), "origin", None) is None:
    pytest.skip("vLLM is not in this environment (make test-vllm)", allow_module_level=True)

from arms import MODEL, ROOT, merged_requests
from serving import QUIET, lines_of, of, server
from windowed import case_of, rows_of

from replay.coverage import variables

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

FLAGS = ("--max-model-len", "512", "--enable-prefix-caching", "--block-size", "32", "--num-gpu-blocks-override", "24",
         "--max-num-batched-tokens", "64", "--max-num-seqs", "8")  # fmt: skip
BEGINNING = [7 * at % 200 + 5 for at in range(64)]
"""Two blocks that half of the prompts share."""


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Thirty requests on a small pool: chunks, cached prefixes, preemptions, stop tokens, clients that leave."""
    folder = tmp_path_factory.mktemp("served")
    content = {"FORENSICS_RECORD_IDS": "1", "FORENSICS_RECORD_LOGITS_SHA256": "1"}
    with server(MODEL, folder, *FLAGS, record=folder / "log", **content) as port:
        asyncio.run(ask(port))
    found = lines_of(folder / "log", "vllm-1")
    assert of(found, "event", "preemption"), "the pool was large enough for all: the test tests nothing"
    assert any(one["prefix_cache_used"] for one in merged_requests(found).values())
    assert any(one["finish_reason"] == "abort" for one in merged_requests(found).values())
    assert any("," in str(one["plan"].get("prefill.chunks", "")) for one in of(found, "step"))
    return found


async def ask(port):
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused") as client:

        async def one(at):
            await asyncio.sleep(at // 6 * 0.05)
            ids = (BEGINNING if at % 2 else []) + [(11 * at + 5 * place) % 200 + 5 for place in range(10 + 7 * at)]
            body = {"ignore_eos": at % 3 > 0, "stop_token_ids": [at + 40]}
            common = {"model": "tiny", "prompt": ids, "temperature": 0, "extra_body": body}
            headers = {"X-Request-Id": f"r{at:02d}"}
            if at % 10 == 7:
                room = 500 - len(ids)  # long answers: on a busy machine a client leaves late
                stream = await client.completions.create(max_tokens=room, stream=True, extra_headers=headers, **common)
                await anext(aiter(stream))
                await stream.close()
            else:
                await client.completions.create(max_tokens=30 + at, extra_headers=headers, **common)

        await asyncio.gather(*(one(at) for at in range(30)))


def whole(lines):
    """Return the name of the request that left the engine last, of those that ended by themselves."""
    ended = [name for name, one in merged_requests(lines).items() if one["finish_reason"] != "abort"]
    return max(ended, key=lambda name: max(one["engine_step"] for one in of(lines, "step") if one["req_id"] == name))


def windows(tmp_path, case, contents):
    """Replay a case's window once in a process of its own."""
    path = tmp_path / "case.json"
    path.write_text(case.to_json())
    env = os.environ | QUIET | variables(case) | {"FORENSICS_RECORD_LOGITS_SHA256": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools/replay_windows.py"), MODEL, contents, str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(
        next(one for one in done.stdout.splitlines() if one.startswith("RESULT ")).removeprefix("RESULT ")
    )


def prove(tmp_path, case, *arguments):
    """Run `python -m replay` on a case; return its verdict, exit code and stderr."""
    path = tmp_path / "case.json"
    path.write_text(case.to_json())
    command = [sys.executable, "-m", "replay", str(path), "-o", str(tmp_path / "v.json"), "--model", MODEL, *arguments]
    env = os.environ | QUIET | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert (tmp_path / "v.json").exists(), done.stderr[-3000:]
    return json.loads((tmp_path / "v.json").read_text()), done.returncode, done.stderr


def test_every_request_of_the_run_comes_back_bit_for_bit(lines, tmp_path):
    found = windows(tmp_path, case_of(lines, whole(lines)), "recorded")
    assert found["why"] == []
    recorded = {name: [one["logits_sha256"] for one in rows_of(lines, name)] for name in merged_requests(lines)}
    shorter = {name: found["rows"][name][: len(rows)] for name, rows in recorded.items()}
    assert shorter == recorded
    assert sum(map(len, recorded.values())) > 500
    assert found["steps"] >= max(one["engine_step"] for one in rows_of(lines, whole(lines)))


def test_the_target_comes_back_although_nobody_elses_ids_are_known(lines, tmp_path):
    case = case_of(lines, whole(lines))
    hidden = [one if one.req_id == case.incident.req_id else dataclasses.replace(one, token_ids=None)
              for one in case.incident.window.requests]  # fmt: skip
    window = dataclasses.replace(case.incident.window, requests=tuple(hidden))
    withheld = dataclasses.replace(case, incident=dataclasses.replace(case.incident, window=window))
    found = windows(tmp_path, withheld, "random")
    assert found["why"] == []
    assert found["rows"][case.incident.req_id] == [one["logits_sha256"] for one in rows_of(lines, case.incident.req_id)]


def test_a_verdict_rests_on_the_recorded_schedule(lines, tmp_path):
    verdict, code, _ = prove(tmp_path, case_of(lines, whole(lines)), "--arms-only")
    reproduced = next(one for one in verdict["controls"] if one["name"] == "incident reproduced")
    assert reproduced["passed"] is True
    assert "engine steps row by row" in reproduced["detail"]
    assert (verdict["outcome"], code) in (("proven", 1), ("no_divergence", 0))


def other_pool(case):
    return dataclasses.replace(case, engine=case.engine | {"kv_blocks_total": 64})


def other_budget(case):
    return dataclasses.replace(
        case,
        engine=case.engine | {"scheduler_limits": case.engine["scheduler_limits"] | {"max_num_batched_tokens": 48}},
    )


def late(case):
    first = {}
    for step, rows in case.incident.window.schedule:
        for row in rows:
            first.setdefault(row[0], step)
    requests = list(case.incident.window.requests)
    at = next(at for at, one in enumerate(requests) if one.arrival_step == first.get(one.req_id) > 0)
    requests[at] = dataclasses.replace(requests[at], arrival_step=requests[at].arrival_step + 3)
    requests.sort(key=lambda one: one.arrival_step)
    window = dataclasses.replace(case.incident.window, requests=tuple(requests))
    return dataclasses.replace(case, incident=dataclasses.replace(case.incident, window=window))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_pool, "a larger KV pool"),
        (other_budget, "max_num_batched_tokens"),
        (late, "an arrival that is not on record"),
    ],
)
def test_another_engine_leaves_the_schedule_and_the_step_is_named(lines, tmp_path, change, says):
    verdict, code, _ = prove(tmp_path, change(case_of(lines, whole(lines))), "--arms-only")
    assert (verdict["outcome"], code) == ("not_reproduced", 4)
    assert "was composed otherwise than on record" in verdict["claim"]
    assert says in verdict["claim"]


def test_a_pin_that_this_engine_does_not_have_is_refused(lines, tmp_path):
    case = case_of(lines, whole(lines))
    plan = case.incident.plan | {"gemm.k_split": "2"}
    odd = dataclasses.replace(case, incident=dataclasses.replace(case.incident, plan=plan))
    verdict, code, _ = prove(tmp_path, odd, "--arms-only")
    assert (verdict["outcome"], code) == ("not_pinned", 4)
    assert "on transformers, not on vllm" in verdict["claim"]
