"""What a gateway adds to a request: hashed before anything keeps it, without a run, and never in the gateway's way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import jsonschema
import pytest

from replay import record
from replay.policy import TRIGGERS
from replay.record import Recorder, emit, raw_prompt_sha256
from replay.secret import RecordingKey

ROOT = Path(record.__file__).parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Record into a folder; return what reads the records back."""
    monkeypatch.setenv("FORENSICS_RECORD", str(tmp_path / "log"))
    monkeypatch.setattr(record, "_said", [])

    def lines():
        for gateway in record._gateways.values():
            if gateway is not None:
                gateway.close()
        found = [
            json.loads(line) for path in (tmp_path / "log").glob("*.jsonl") for line in path.read_text().splitlines()
        ]
        return [line for line in found if line.get("what") != "recorder_cost"]

    yield lines
    for key in [key for key in record._gateways if tmp_path in key[1].parents]:
        gateway = record._gateways.pop(key)
        if gateway is not None:
            gateway.close()


def test_without_a_folder_nothing_happens(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("FORENSICS_RECORD", raising=False)
    monkeypatch.chdir(tmp_path)
    emit("request", req_id="a")
    emit("nonsense")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_a_request_carries_what_was_said_and_no_run(folder):
    emit(
        "request",
        req_id="cmpl-1",
        policy_gates=[{"name": "pii", "action": "rewrite"}],
        truncated=True,
        trunc_reason=None,
    )
    emit("event", what="config_change", detail={"template": "v2"})
    one, two = folder()
    assert (one["kind"], one["req_id"], one["truncated"]) == ("request", "cmpl-1", True)
    assert one["policy_gates"] == [{"name": "pii", "action": "rewrite"}]
    assert two["what"] == "config_change"
    for line in (one, two):
        assert not {"run_id", "replica_id", "trunc_reason"} & line.keys()
        assert {"ts", "seq", "writer", "clock_id", "mono_ns"} <= line.keys()


def test_tenant_and_texts_are_hashed_before_they_are_kept(folder, tmp_path):
    emit("request", req_id="a", tenant="acme", prompt="my secret", system_message="be kind")
    emit("request", req_id="b", tenant="acme", prompt=[{"role": "user", "content": "my secret"}])
    emit("request", req_id="c", tenant="other")
    one, two, three = folder()
    assert one["raw_prompt_sha256"] == raw_prompt_sha256("my secret")
    assert one["system_message_sha256"] == raw_prompt_sha256("be kind")
    assert one["tenant_sha256"] == two["tenant_sha256"] != three["tenant_sha256"]
    written = b"".join(path.read_bytes() for path in (tmp_path / "log").iterdir())
    for plain in (b"acme", b"my secret", b"be kind"):
        assert plain not in written


def test_a_tenant_is_keyed_with_the_key_of_the_recording(folder, tmp_path):
    import hashlib

    emit("request", req_id="a", tenant="acme")
    (one,) = folder()
    assert one["tenant_sha256"] != hashlib.sha256(b"acme").hexdigest(), "a list of customers would find it"
    engine = Recorder(tmp_path / "log", "toy")
    engine.close()
    assert one["tenant_sha256"] == engine._key.tenant_sha256("acme")
    (tmp_path / "other").mkdir()
    assert one["tenant_sha256"] != RecordingKey(tmp_path / "other").tenant_sha256("acme")


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [("step", {"req_id": "a"}, "only request and event"), ("request", {}, "needs req_id"),
     ("request", {"req_id": 7}, "needs req_id"), ("event", {}, "needs what"),
     ("request", {"req_id": "a", "seq": 1}, "seq: written by the recorder"),
     ("request", {"req_id": "a", "prompt": object()}, "is no JSON value")],
)  # fmt: skip
def test_what_cannot_be_recorded_is_said_and_never_raised(folder, capsys, kind, fields, said):
    emit(kind, **fields)
    emit("request", req_id="fine")
    assert [line["req_id"] for line in folder()] == ["fine"]
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FORENSICS_RECORD", str(tmp_path / "file" / "log"))
    monkeypatch.setattr(record, "_said", [])
    for _ in range(20):
        emit("request", req_id="a")
    assert capsys.readouterr().err.count("emit: not recorded") == 1


def test_threads_and_forks_have_no_line_of_each_other(folder, tmp_path):
    def work(name):
        for number in range(200):
            emit("request", req_id=f"{name}-{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if child == 0:
        work("child")
        for (pid, _), gateway in record._gateways.items():
            if pid == os.getpid():
                gateway.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    found = [line["req_id"] for line in folder()]
    assert sorted(found) == sorted(f"{name}-{number}" for name in (0, 1, 2, 3, "child") for number in range(200))
    assert len(list((tmp_path / "log").glob("gateway-*.jsonl"))) == 2


def test_a_gateway_needs_nothing_but_the_standard_library(tmp_path):
    code = (
        "import sys; from replay.record import emit\n"
        "emit('request', req_id='a', tenant='acme')\n"
        "print([name for name in ('torch', 'duckdb', 'numpy', 'transformers') if name in sys.modules])\n"
    )
    environment = os.environ | {"FORENSICS_RECORD": str(tmp_path / "log")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    (path,) = (tmp_path / "log").glob("*.jsonl")
    assert json.loads(path.read_text().splitlines()[0])["req_id"] == "a", "written at exit, without a close"


def test_the_example_of_the_documentation(folder):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/recording.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, "docs/recording.md", "exec"), {})
    request, event = folder()
    schemas = {kind: json.loads((ROOT / f"schemas/{kind}.v1.json").read_text()) for kind in ("request", "event")}
    for line in (request, event):
        jsonschema.validate(line, schemas[line["kind"]])
        assert line.keys() <= schemas[line["kind"]]["properties"].keys()
    assert request["req_id"] == "chatcmpl-42"
    assert request["raw_prompt_sha256"] == raw_prompt_sha256([{"content": "What is due today?", "role": "user"}])
    assert event["what"] == "config_change"


def test_the_documentation_names_every_setting():
    text = (ROOT / "docs/recording.md").read_text(encoding="utf-8")
    table = set(re.findall(r"^\| `FORENSICS_RECORD_(\w+)` \|", text, re.MULTILINE))
    assert table == set(re.findall(r'_read\("(\w+)"', (ROOT / "replay/policy.py").read_text(encoding="utf-8")))
    assert all(f"| `{name}` |" in text for name in TRIGGERS)
