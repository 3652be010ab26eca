"""The recorder inside transformers: it writes what ran, and changes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from from_log import merged

from replay.engines import transformers_static
from replay.engines.transformers import install, plan_facts, request_ids
from replay.engines.transformers_facts import compiled_parts
from replay.host import tokenizer_sha256, weights_sha256
from replay.record import token_ids_sha256

ROOT = Path(__file__).parents[2]
SCHEMAS = {kind: json.loads((ROOT / "schemas" / f"{kind}.v1.json").read_text())
           for kind in ("engine", "request", "step", "batch", "event", "device")}  # fmt: skip


def batch_of(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[1] * (width - len(row)) + row for row in prompts])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])


def generate(model, prompts, new_tokens=6, **options):
    ids, mask = batch_of(prompts)
    return model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False,
                          return_dict_in_generate=True, output_logits=True, **options)  # fmt: skip


def of(records, kind, **where):
    return [r for r in records if r["kind"] == kind and all(r.get(name) == value for name, value in where.items())]


def test_a_recorded_run_has_the_bits_of_an_unrecorded_one(model, prompts, recording):
    recorded = generate(model, prompts)
    recording()
    free = generate(model, prompts)
    assert torch.equal(recorded.sequences, free.sequences)
    assert all(torch.equal(one, other) for one, other in zip(recorded.logits, free.logits, strict=True))


def test_every_line_keeps_the_contract(model, prompts, recording):
    generate(model, prompts)
    records = recording()
    assert {r["kind"] for r in records} == {"engine", "request", "batch", "step", "event", "device"}
    for record in records:
        jsonschema.validate(record, SCHEMAS[record["kind"]])
        assert record.keys() <= SCHEMAS[record["kind"]]["properties"].keys()


def test_steps_hold_the_tokens_and_raw_logits_that_generate_used(model, prompts, recording):
    output = generate(model, prompts[:3])
    records = recording()
    width = max(map(len, prompts[:3]))
    for row, prompt in enumerate(prompts[:3]):
        steps = sorted(of(records, "step", row=row), key=lambda r: r["step"])
        assert [s["token_id"] for s in steps] == output.sequences[row, width:].tolist()[: len(steps)]
        for step, logits in zip(steps, output.logits, strict=False):
            assert step["top_logits"] == logits[row].topk(3).values.tolist()
            assert step["logits_sha256"] == transformers_static.row_sha256(logits[row].bfloat16())
            assert step["logit_dtype"] == "bfloat16"
        assert [s["num_computed_tokens"] for s in steps] == [0, *range(len(prompt), len(prompt) + len(steps) - 1)]
        assert [s["num_scheduled_tokens"] for s in steps] == [len(prompt), *[1] * (len(steps) - 1)]
        request = merged(records, "request", req_id=steps[0]["req_id"])
        assert request["effective_token_ids"] == prompt
        assert request["effective_token_ids_sha256"] == token_ids_sha256(prompt)
        assert request["decode_cfg_applied"] == {"temperature": 0, "max_tokens": 6, "stop_token_ids": [0]}


def test_the_launch_is_recorded_as_it_was(model, prompts, recording):
    generate(model, prompts)
    records = recording()
    first = of(records, "batch", engine_step=0)[0]
    width = max(map(len, prompts))
    assert (first["batch_size"], first["batch_tokens"]) == (8, sum(map(len, prompts)))
    assert first["padded_tokens"] == 8 * width
    assert first["plan"]["batch.rows"] == "8"
    assert first["plan"]["batch.mask_path"] == "explicit"
    pads = {s["row"]: s["plan"]["batch.left_pad"] for s in of(records, "step", engine_step=0)}
    assert pads == {row: str(width - len(prompt)) for row, prompt in enumerate(prompts)}


def test_the_mask_path_is_what_reached_attention(model, prompts, recording):
    generate(model, prompts[:1])
    model.set_attn_implementation("eager")
    try:
        generate(model, prompts[:1])
    finally:
        model.set_attn_implementation("sdpa")
    plans = [r["plan"] for r in of(recording(), "batch") if r["batch_tokens"] == len(prompts[0])]
    assert [(p["batch.mask_path"], p["attention.backend"]) for p in plans] == [
        ("implicit", "flash"),
        ("explicit", "eager"),
    ]


def test_a_request_that_ended_leaves_the_batch_and_says_why(model, prompts, recording):
    free = generate(model, prompts[:2], eos_token_id=-1)
    stop = int(free.sequences[0, max(map(len, prompts[:2])) + 1])  # what row 0 says second
    other = free.sequences[1, max(map(len, prompts[:2])) :].tolist()
    with request_ids(["a", "b"]):
        generate(model, prompts[:2], eos_token_id=stop)
    records = recording()
    one, two = (merged(records, "request", req_id=name) for name in ("a", "b"))
    assert (one["finish_reason"], one["output_token_ids"][-1]) == ("stop", stop)
    assert two["finish_reason"] == ("stop" if stop in other else "length")
    late = [r for r in of(records, "batch") if r["batch_tokens"] < r["batch_size"]]
    assert late
    assert all(r["batch_size"] == 2 for r in late)


def test_the_caller_names_requests_and_plan_factors(model, prompts, recording):
    with request_ids(["x", "y"]), plan_facts({"gemm.k_split": "3"}):
        generate(model, prompts[:2])
    records = recording()
    assert {r["req_id"] for r in of(records, "request")} == {"x", "y"}
    assert all(r["plan"]["gemm.k_split"] == "3" for r in of(records, "batch"))


def test_the_engine_record_says_what_the_model_and_machine_are(model, prompts, recording, model_path):
    generate(model, prompts[:1])
    engine = merged(recording(), "engine")
    assert engine["weights_sha256"] == weights_sha256(model_path)
    assert engine["tokenizer_sha256"] == tokenizer_sha256(model_path)
    assert (engine["num_layers"], engine["num_heads"], engine["num_kv_heads"], engine["dtype"]) == (2, 9, 3, "bfloat16")
    assert engine["num_threads"] == torch.get_num_threads()


def compiled_module(model):
    torch._dynamo.reset()
    model.model.layers[0].compile(backend="eager")
    return lambda: setattr(model.model.layers[0], "_compiled_call_impl", None)


def compiled_forward(model):
    torch._dynamo.reset()
    model.forward = torch.compile(model.forward, backend="eager")
    return lambda: vars(model).pop("forward")


@pytest.mark.parametrize("compile_it", [compiled_module, compiled_forward])
def test_a_compiled_model_is_said_to_be_compiled_and_never_called_eager(model, prompts, recording, compile_it):
    assert not compiled_parts(model)
    undo = compile_it(model)
    try:
        generate(model, prompts[:1], new_tokens=2)
    finally:
        undo()
    records = recording()
    assert [r["detail"] for r in of(records, "event", what="not_recorded")] == [{"reason": "compiled forward"}]
    assert not of(records, "batch")
    assert "graph_mode" not in merged(records, "engine")


def test_ids_are_left_out_unless_asked_for(model, prompts, tmp_path, monkeypatch):
    from from_log import read_log

    monkeypatch.delenv("FORENSICS_RECORD_IDS", raising=False)
    stop = install(tmp_path)
    generate(model, prompts[:1])
    stop()
    for record in read_log(tmp_path):
        assert not {"token_id", "top_token_ids", "effective_token_ids", "output_token_ids"} & record.keys()


def test_decoding_without_a_cache_is_on_record_from_the_first_pass(model, prompts, recording):
    generate(model, prompts[:1], use_cache=False)
    generate(model, prompts[:1])
    modes = [r["plan"].get("decode.mode") for r in of(recording(), "batch")]
    assert modes == ["recompute"] * (len(modes) // 2) + [None] * (len(modes) // 2)
    assert len(modes) >= 4


def test_a_fault_of_the_recorder_never_fails_generate(model, prompts, recording, monkeypatch):
    def broken(*_args):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(transformers_static, "row_sha256", broken)
    output = generate(model, prompts[:2])
    monkeypatch.undo()
    assert torch.equal(output.sequences, generate(model, prompts[:2]).sequences)
    events = of(recording(), "event", what="recorder_fault")
    assert any("broken on purpose" in event["detail"]["fault"] for event in events)


def test_a_chunked_prefill_is_several_steps_with_one_token(model, prompts, recording):
    model.generate(torch.tensor([prompts[2]]), max_new_tokens=2, do_sample=False, prefill_chunk_size=16,
                   past_key_values=None)  # fmt: skip
    steps = of(recording(), "step")
    assert [s["num_scheduled_tokens"] for s in steps] == [16, 16, 16, 1]
    assert [s.get("token_index") for s in steps] == [None, None, 0, 1]


PROGRAM = """
import sys
assert "transformers" not in sys.modules and "torch" not in sys.modules
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
print(model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False).tolist())
"""


def run_program(program, *arguments, path, **variables):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], env=environment, capture_output=True,
                          text=True, timeout=120, check=False)  # fmt: skip


def test_a_program_that_knows_nothing_of_it_is_recorded(model_path, tmp_path):
    (tmp_path / "shadowed").mkdir()
    (tmp_path / "shadowed" / "sitecustomize.py").write_text("print('the shadowed one ran')")
    path = [ROOT / "replay" / "autoload", tmp_path / "shadowed"]
    done = run_program(PROGRAM, model_path, path=path, FORENSICS_RECORD=str(tmp_path / "log"))
    assert done.returncode == 0, done.stderr
    assert "the shadowed one ran" in done.stdout
    kinds = [json.loads(line)["kind"] for log in (tmp_path / "log").glob("*.jsonl")
             for line in log.read_text().splitlines()]  # fmt: skip
    assert kinds.count("step") == 3
    assert "forensics:" not in done.stderr


def test_autoload_does_nothing_unless_told_and_never_stops_a_program(tmp_path):
    path = [ROOT / "replay" / "autoload"]
    quiet = run_program(
        "import sys; print([m for m in sys.modules if m.startswith('replay')])", path=path, FORENSICS_RECORD=""
    )
    assert (quiet.returncode, quiet.stdout.strip(), quiet.stderr) == (0, "[]", "")
    (tmp_path / "log").write_text("a file where the folder should be")
    (tmp_path / "sitecustomize.py").write_text("raise RuntimeError('shadowed and broken')")
    broken = run_program("print('alive')", path=[*path, tmp_path], FORENSICS_RECORD=str(tmp_path / "log"))
    assert (broken.returncode, broken.stdout.strip()) == (0, "alive")
    assert "shadowed and broken" in broken.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_top_logits_are_those_that_argmax_would_take_one_after_the_other(dtype):
    """Rounded logits tie often, at the first place and at the border of what is asked for."""
    logits = (torch.randn((64, 300), generator=torch.Generator().manual_seed(0)) * 2).round().to(dtype)
    borders = 0
    for row, (ids, values) in enumerate(transformers_static.top_of_rows(logits, 2)):
        rest = logits[row].float()
        for one, value in zip(ids, values, strict=True):
            assert (one, value) == (int(rest.argmax()), float(rest.max()))
            rest[one] = float("-inf")
        borders += float(rest.max()) == values[-1]
    assert borders, "some row has a tie that topk may break either way"
