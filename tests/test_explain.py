"""From a log to a chain: each detector fires on its story, and stays silent on the look-alike."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from forensics.errors import ForensicsError
from forensics.explain import explain
from forensics.incidents import incidents
from forensics.load import load
from forensics.reports import json as json_report
from forensics.reports import markdown, terminal
from forensics.timeline import Thresholds
from tests.story import GREEDY, A, B, Story, codes, grades, loaded, told

if TYPE_CHECKING:
    from forensics.explanation import Explanation

SCHEMA = Path(__file__).parent.parent / "schemas" / "explanation.v1.json"


def test_the_chain_of_a_batch(tmp_path: Path) -> None:
    found = told(tmp_path, loaded())
    assert found.standing == "divergence"
    assert found.exit_code == 1
    assert found.flip is not None
    assert (found.flip.token_index, found.flip.target_token, found.flip.reference_token) == (2, "9", "3")
    assert codes(found) == {"batch_recomposition", "shape_class_change", "logit_drift", "thin_margin", "token_flip"}
    assert found.root_cause == "batch_recomposition"
    assert found.plan_table.same_plan_same_bits == 1
    assert found.plan_table.other_plan_other_bits == 2
    assert grades(found)["batch_recomposition", "shape_class_change"] == "supported"
    assert grades(found)["shape_class_change", "logit_drift"] == "supported"
    assert "weights_drift" in found.ruled_out


def test_margins_and_drift(tmp_path: Path) -> None:
    story = Story().engine()
    story.request("idle", (1, 2, 3)).request("load", (1, 2, 9), rows=2)
    for record in story.records:
        if record["kind"] == "step" and record.get("token_index") == 2 and record["req_id"] in ("idle", "load"):
            idle = record["req_id"] == "idle"
            record["top_token_ids"] = [3, 9] if idle else [9, 3]
            record["top_logits"] = [20.0, 19.875] if idle else [20.25, 20.0]
            record["margin"] = 0.125 if idle else 0.25
    found = told(tmp_path, story)
    assert found.flip is not None
    assert (found.flip.reference_ulps, found.flip.target_ulps) == (1.0, 2.0)
    assert found.flip.drift == 0.375  # from -0.125 to +0.25
    assert found.flip.tie == "near tie"
    assert grades(found)["logit_drift", "token_flip"] == "supported"


def test_without_a_repeat_the_shape_is_only_consistent(tmp_path: Path) -> None:
    story = Story().engine().request("idle", A).request("load", B, rows=4, drift=0.25)
    found = told(tmp_path, story)
    assert grades(found)["shape_class_change", "logit_drift"] == "consistent"
    assert found.chain_grade == "consistent"
    weakest = [link for link in found.chain if link.grade == "consistent"]
    assert any("second run" in (link.raise_by or "") for link in weakest)


def test_same_shapes_with_other_bits_refute_the_shape(tmp_path: Path) -> None:
    story = (
        Story()
        .engine()
        .request("idle", A)
        .request("racy", (1, 2, 3, 7), drift=0.125)
        .request("load", B, rows=4, drift=0.25)
    )
    found = told(tmp_path, story)
    assert found.plan_table.counter_examples
    assert grades(found)["shape_class_change", "logit_drift"] == "refuted"
    assert found.root_cause != "batch_recomposition"


def test_drift_before_the_shape_changed_refutes(tmp_path: Path) -> None:
    story = Story().engine().request("idle", A).request("load", B, drift=0.25)
    for record in story.records[-2:]:  # only the last step ran in a larger launch
        record.update({"batch_size": 4, "batch_tokens": 4} if record["kind"] == "batch" else {})
    found = told(tmp_path, story)
    assert "shape_class_change" not in codes(found), "the change came after the flip"
    assert found.root_cause == "undetermined", "drift without a cause on a lower rung is no explanation"
    assert [link.cause for link in found.chain] == ["logit_drift"]


def test_preemption(tmp_path: Path) -> None:
    story = Story().engine().request("idle", A).request("idle-2", A).request("load", B, drift=0.25, at=1)
    step, batch = story.records[-5], story.records[-6]
    assert (step["step"], batch["kind"]) == (1, "batch")
    step |= {"resumed": True, "num_scheduled_tokens": 5, "num_computed_tokens": 0}
    batch |= {"batch_tokens": 5, "padded_tokens": 5}
    found = told(tmp_path, story)
    assert codes(found) >= {"preemption_recompute", "shape_class_change", "logit_drift"}
    assert found.root_cause == "preemption_recompute"
    assert grades(found)["preemption_recompute", "shape_class_change"] == "supported"


def test_a_later_preemption_did_not_start_the_change(tmp_path: Path) -> None:
    story = loaded()
    for record in story.records:
        if record["kind"] == "step" and record["req_id"] == "load" and record["step"] == 1:
            record |= {"resumed": True, "num_scheduled_tokens": 5, "num_computed_tokens": 0}
    found = told(tmp_path, story)
    assert grades(found)["preemption_recompute", "shape_class_change"] == "refuted"
    assert found.root_cause == "batch_recomposition"


def test_preemption_cannot_be_told_without_the_field(tmp_path: Path) -> None:
    story = loaded()
    for record in story.records:
        record.pop("resumed", None)
        record.pop("observes", None)
    found = told(tmp_path, story)
    assert "preemption_recompute" in {gap.code for gap in found.gaps}
    assert "preemption_recompute" not in found.ruled_out
    assert grades(found)["batch_recomposition", "shape_class_change"] == "consistent"


def test_prefix_cache(tmp_path: Path) -> None:
    story = loaded()
    for record in story.records:
        if record["kind"] == "step" and record["req_id"] == "load" and record["step"] == 0:
            record |= {"num_computed_tokens": 3, "num_scheduled_tokens": 1}
    assert "prefix_cache_hit" in codes(told(tmp_path, story))


def test_an_environment_of_which_nothing_follows_does_not_come_before_another_input(tmp_path: Path) -> None:
    there = Story("run-2").engine(environment={"HOST_NOTE": "x"})
    there.request("cut", B, prompt=(7, 8), drift=0.25, truncated=True)
    found = told(tmp_path, Story().engine().request("idle", A), there, req="cut", against="idle")
    assert {"environment_change", "effective_request_drift"} <= codes(found)
    assert found.root_cause == "effective_request_drift"
    assert found.chain_grade == "consistent", "the other environment is not ruled out"


def test_weights_and_environment(tmp_path: Path) -> None:
    idle = Story("run-1").engine().request("idle", A)
    load = (
        Story("run-2")
        .engine(weights_sha256="b" * 64, versions={"torch": "2.14"}, num_threads=4)
        .request("load", B, drift=0.25)
    )
    found = told(tmp_path, idle, load, against="idle")
    assert {"weights_drift", "environment_change"} <= codes(found)
    environment = found.finding("environment_change")
    assert environment is not None
    assert environment.target == {"versions.torch": "2.14"}, "a fact that one side does not state is no difference"
    assert found.root_cause in ("weights_drift", "environment_change")


def test_other_input_when_the_same_was_asked(tmp_path: Path) -> None:
    asked = {"raw_prompt_sha256": "c" * 64, "decode_cfg_requested": GREEDY}
    story = Story().engine().request("idle", A, **asked).request("load", B, prompt=(5, 6, 7), drift=0.25, **asked)
    found = told(tmp_path, story)
    drift = found.finding("effective_request_drift")
    assert drift is not None
    assert "position 3" in drift.says
    assert found.root_cause == "effective_request_drift"


def test_other_configuration(tmp_path: Path) -> None:
    cfg = GREEDY | {"repetition_penalty": 1.1}
    story = Story().engine().request("idle", A).request("load", B, cfg=cfg)
    found = told(tmp_path, story, against="idle")
    drift = found.finding("decode_config_drift")
    assert drift is not None
    assert "repetition_penalty" in drift.says


def test_a_clear_margin_is_not_rounding(tmp_path: Path) -> None:
    story = loaded()
    for record in story.records:
        if record["kind"] == "step" and record.get("top_logits"):
            record["top_logits"] = [record["top_logits"][0], 10.0]
            record["margin"] = record["top_logits"][0] - 10.0
    found = told(tmp_path, story)
    assert "thin_margin" not in codes(found)
    assert grades(found)["shape_class_change", "logit_drift"] != "supported"


@pytest.mark.parametrize(
    ("outputs", "fields", "standing", "code"),
    [
        ((A, A), {}, "same", 0),
        ((A, A[:2]), {}, "cut_short", 0),
        ((A, A[:2]), {"finish_reason": "stop"}, "divergence", 1),
        ((A, B), {"cfg": {"temperature": 0.7}}, "sampled", 0),
        ((A, B), {"cfg": {"temperature": 0.7, "seed": 1}}, "divergence", 1),
    ],
)
def test_what_is_no_incident(tmp_path: Path, outputs: Any, fields: dict[str, Any], standing: str, code: int) -> None:
    cfg = {"cfg": fields["cfg"]} if "cfg" in fields else {}
    story = Story().engine().request("idle", outputs[0], **cfg).request("load", outputs[1], **fields)
    found = told(tmp_path, story)
    assert (found.standing, found.exit_code) == (standing, code)
    assert found.root_cause == ("none" if code == 0 else found.root_cause)


def test_alone_on_record(tmp_path: Path) -> None:
    found = told(tmp_path, Story().engine(engine="transformers").request("load", A))
    assert (found.standing, found.exit_code, found.root_cause) == ("no_reference", 4, "undetermined")
    assert found.next_commands[0] == "forensics replay load"


def test_alone_on_record_where_nothing_can_be_replayed(tmp_path: Path) -> None:
    found = told(tmp_path, Story().engine().request("load", A, decode_cfg_applied=None))
    assert found.next_commands == ("forensics contract load",)
    assert "decode_cfg_applied" in {gap.field for gap in found.gaps}, "what is missing is named"


def test_tags_find_the_flip_without_ids(tmp_path: Path) -> None:
    story = loaded()
    for record in story.records:
        for name in ("output_token_ids", "effective_token_ids", "top_token_ids"):
            record.pop(name, None)
        if "token_id" in record:
            record["token_tag"] = f"tag{record['token_index']}-{record.pop('token_id')}"
    found = told(tmp_path, story)
    assert found.flip is not None
    assert (found.flip.token_index, found.flip.target_token) == (2, "tag2-9")


def test_tags_under_other_keys_do_not_compare(tmp_path: Path) -> None:
    idle, load = (
        Story("run-1").engine().request("idle", A),
        Story("run-2").engine(token_tag_key_id="k2").request("load", B),
    )
    for record in idle.records + load.records:
        record.pop("output_token_ids", None)
        if "token_id" in record:
            record["token_tag"] = f"tag{record.pop('token_id')}"
    found = told(tmp_path, idle, load)
    assert found.standing == "divergence", "the hashes of the outputs differ"
    assert found.flip is None
    assert "token_flip" in {gap.code for gap in found.gaps}


def test_unknown_and_ambiguous_ids(tmp_path: Path) -> None:
    story = (
        Story()
        .engine()
        .request("chat-17-aa", A, external_req_id="chat-17")
        .request("chat-17-bb", A, external_req_id="chat-17")
    )
    with story.tell(tmp_path) as store:
        with pytest.raises(ForensicsError, match="no request 'chat-18'") as unknown:
            explain(store, "chat-18")
        with pytest.raises(ForensicsError, match="names 2 requests") as several:
            explain(store, "chat-17")
        assert explain(store, "chat-17-aa").standing == "same"
    assert unknown.value.exit_code == several.value.exit_code == 2
    assert "chat-17-bb" in str(several.value)


def test_reports_neutralise_what_a_log_says(tmp_path: Path) -> None:
    evil = "x\x1b[31m[bold]|`<script>\u202e\n# heading"
    story = (
        Story().engine(model_id=evil).request("idle", A).request("load", B, rows=2, drift=0.25, external_req_id=evil)
    )
    found = told(tmp_path, story)
    for report in (terminal, markdown):
        out = io.StringIO()
        report.render(found, out)
        text = out.getvalue()
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "\n# heading" not in text
    assert "[bold]" in _rendered(terminal, found), "markup of a log is text"


def test_json_keeps_its_schema(tmp_path: Path) -> None:
    document = json.loads(_rendered(json_report, told(tmp_path, loaded())))
    jsonschema.validate(document, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert document["root_cause"] == "batch_recomposition"


def _rendered(report: Any, explanation: Explanation) -> str:
    out = io.StringIO()
    report.render(explanation, out)
    return out.getvalue()


def verdict_file(folder: Path, factor: str, outcome: str = "proven", reference: str = "idle-1", **changes: Any) -> Path:
    document = {
        "format": "forensics.verdict/1", "outcome": outcome, "claim": f"exchanging {factor} exchanges the results",
        "req_id": "load", "run_id": "run-1", "case_sha256": "c" * 64,
        "reference": {"run_id": "run-1", "req_id": reference, "synthetic": False},
        "factors": [{"factor": factor, "incident": "4", "reference": "1"}],
        "trials": [
            {"name": f"restored: incident with {factor} of the reference", "bits_equal": "reference"},
            {"name": f"induced: reference with {factor} of the incident", "bits_equal": "incident"},
            "odd",
        ],
        "limits": ["one"], "controls": None,
    }  # fmt: skip
    path = folder / f"{outcome}-{factor}-{reference}.json"
    path.write_text(json.dumps(document | changes, indent=1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("factor", "outcome", "reference", "shape", "flip"),
    [
        ("batch.rows", "proven", "idle-1", "proven", "proven"),
        ("gemm.k_split", "proven", "idle-1", "supported", "proven"),
        ("batch.rows", "refuted", "idle-1", "supported", "supported"),
        ("batch.rows", "proven", "somebody-else", "supported", "supported"),
    ],
)
def test_what_a_verdict_raises(
    tmp_path: Path, factor: str, outcome: str, reference: str, shape: str, flip: str
) -> None:
    with loaded().tell(tmp_path) as store:
        load([verdict_file(tmp_path, factor, outcome, reference)], store, None)
        found = explain(store, "load")
    assert grades(found)["shape_class_change", "logit_drift"] == shape
    assert grades(found)["logit_drift", "token_flip"] == flip
    assert grades(found)["batch_recomposition", "shape_class_change"] == "supported", "nothing below the plan"
    assert bool(found.verdicts) == (reference == "idle-1"), "a verdict against another reference says nothing here"
    for report in (terminal, markdown, json_report):
        assert (outcome in _rendered(report, found)) or not found.verdicts


def test_silent_drift_is_said(tmp_path: Path) -> None:
    story = Story().engine().request("idle", A).request("idle-2", A).request("load", A, rows=4, drift=0.25, at=1)
    with story.tell(tmp_path) as store:
        drifted, equal = explain(store, "load", "idle"), explain(store, "idle-2", "idle")
    assert "differ from output token 1 on, in 3 of 4 tokens; none flipped" in drifted.headline
    assert "equal bit for bit" in equal.headline
    assert drifted.exit_code == equal.exit_code == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": []},
        {"factors": []},
        {"controls": [{"name": "incident reproduced", "passed": False, "detail": "no"}]},
        {"trials": [{"name": "restored: incident with batch.rows of the reference", "bits_equal": "reference"}]},
        {
            "trials": [
                {
                    "name": "restored: incident with batch.rows of the reference",
                    "bits_equal": "reference",
                    "plan": {"batch.rows": "1"},
                    "observed": {"batch.rows": "4"},
                },
                {"name": "induced: reference with batch.rows of the incident", "bits_equal": "incident"},
            ]
        },
    ],
)
def test_the_word_proven_alone_proves_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    with loaded().tell(tmp_path) as store:
        load([verdict_file(tmp_path, "batch.rows", **changes)], store, None)
        found = explain(store, "load")
    assert grades(found)["shape_class_change", "logit_drift"] == "supported"
    assert any("no verdict on file proves it" in claim for claim in found.cannot_claim)


def test_an_exchange_with_more_held_and_ended_early_takes_nothing_from_the_proof(tmp_path: Path) -> None:
    of_the = {
        "restored": "incident with batch.rows of the reference",
        "induced": "reference with batch.rows of the incident",
    }
    bits = {"restored": "reference", "induced": "incident"}
    plain = [{"name": f"{half}: {text}", "bits_equal": bits[half]} for half, text in of_the.items()]
    held = {"name": f"restored: {of_the['restored']}, M of every GEMM held", "bits_equal": None, "stopped": 1}
    with loaded().tell(tmp_path) as store:
        load([verdict_file(tmp_path, "batch.rows", trials=[*plain, held])], store, None)
        found = explain(store, "load")
    assert grades(found)["logit_drift", "token_flip"] == "proven"
    assert "ended at output token 1" in found.verdicts[0].trials[-1].no_result


def test_a_proof_counts_from_the_other_side_too(tmp_path: Path) -> None:
    with loaded().tell(tmp_path) as store:
        load([verdict_file(tmp_path, "batch.rows")], store, None)
        found = explain(store, "idle-1", "load")
    assert grades(found)["logit_drift", "token_flip"] == "proven"


def test_a_tie_with_a_third_token_says_nothing_about_the_flip(tmp_path: Path) -> None:
    story = loaded()
    for record in story.records:
        if record["kind"] == "step" and record.get("token_index") == 2 and record.get("top_token_ids"):
            record |= {"top_token_ids": [record["token_id"], 77], "margin": 0.0}
            record["top_logits"] = [record["top_logits"][0]] * 2
    found = told(tmp_path, story)
    assert found.flip is not None
    assert (found.flip.target_margin, found.flip.tie) == (0.0, None)
    assert "thin_margin" not in codes(found)
    assert "thin_margin" in {gap.code for gap in found.gaps}


def test_a_token_that_is_not_the_highest_logit_was_not_flipped_by_drift(tmp_path: Path) -> None:
    story = loaded()
    for record in story.records:
        if record["kind"] == "step" and record["req_id"] == "load" and record["step"] == 2:
            record["top_token_ids"] = [77, 9]
    found = told(tmp_path, story)
    assert grades(found)["logit_drift", "token_flip"] == "refuted"
    assert found.root_cause == "undetermined"


def test_a_named_reference_keeps_the_cohort_and_the_commands(tmp_path: Path) -> None:
    chosen, named = told(tmp_path, loaded()), told(tmp_path, loaded(), against="idle-1")
    assert chosen.reference is not None
    assert chosen.reference.req_id == "idle-1"
    assert grades(chosen) == grades(named)
    assert all("--against=idle-1" in command for command in named.next_commands)


def test_ids_that_look_like_something_else(tmp_path: Path) -> None:
    evil = "-o $(touch pwned)\n```\x1b[31m"
    story = Story().engine(engine="transformers").request("idle", A).request(evil, B, rows=2, drift=0.25)
    found = told(tmp_path, story, req=evil)
    text = _rendered(markdown, found)
    assert "\x1b" not in text
    assert "-- $'-o $(touch pwned)\\x0a```\\x1b[31m'" in text
    assert "\n````sh\n" in text, "the block of commands has a longer fence"
    assert text.rstrip().endswith("\n````")


def test_a_request_is_found_by_run_and_id(tmp_path: Path) -> None:
    one, two = Story("run-1").engine().request("a", A), Story("run-2").engine().request("a", A)
    with one.tell(tmp_path, two) as store:
        with pytest.raises(ForensicsError, match="run-1/a"):
            explain(store, "a")
        assert explain(store, "run-2/a").target.run_id == "run-2"


def test_steps_without_a_request_record_are_not_denied(tmp_path: Path) -> None:
    story = Story().engine().request("a", A)
    story.records = [record for record in story.records if record["kind"] != "request"]
    with story.tell(tmp_path) as store, pytest.raises(ForensicsError, match="has steps on record"):
        explain(store, "a")


def test_incidents_among_requests_that_said_nothing(tmp_path: Path) -> None:
    story = loaded()
    for name in ("running", "aborted", "queued"):
        story.request(name, (), output_token_ids=None, output_token_ids_sha256=None, output_tokens=None)
    with story.tell(tmp_path) as store:
        (listed,) = incidents(store, Thresholds())
    assert listed.incident.target.name == "load"


def test_incidents_whose_output_stands_in_their_steps(tmp_path: Path) -> None:
    story = loaded()
    for record in story.records:
        for name in ("output_token_ids", "output_token_ids_sha256"):
            record.pop(name, None)
    with story.tell(tmp_path) as store:
        (listed,) = incidents(store, Thresholds())
    assert listed.row()["flip at"] == 2


def test_what_a_detector_quotes_from_a_log_is_neutralised(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\u202e"
    story = Story().engine().request("idle", A).request("load", B, cfg=GREEDY | {"bad_words": evil})
    found = told(tmp_path, story, against="idle")
    drift = found.finding("decode_config_drift")
    assert drift is not None
    story = Story().engine(device=evil).request("idle", A)
    other = Story("run-2").engine(device="cpu" + evil).request("load", B, drift=0.25)
    environment = told(tmp_path / "more", story, other, against="idle").finding("environment_change")
    assert environment is not None
    raw = dataclasses.replace(found, findings=(dataclasses.replace(drift, says=evil),), links=(), chain=())
    for explanation in (found, raw, told(tmp_path / "again", story, other, against="idle")):
        for report in (terminal, markdown):
            assert not {"\x1b", "\x07", "\u202e"} & set(_rendered(report, explanation))


def test_commands_quote_what_a_shell_would_read(tmp_path: Path) -> None:
    name = "a $(touch pwned) 'b' ; c"
    story = Story().engine(engine="transformers").request("idle", A).request(name, B, rows=2, drift=0.25)
    (replay, _) = told(tmp_path, story, req=name).next_commands
    assert shlex.split(replay) == ["forensics", "replay", name]


def test_a_lane_shows_the_largest_launch_of_each_token(tmp_path: Path) -> None:
    found = told(tmp_path, loaded())
    target, reference = found.lanes
    assert (target.rows, target.launch_tokens) == ((4, 4, 4, 4), (16, 4, 4, 4))
    assert (reference.rows, reference.launch_tokens) == ((1, 1, 1, 1), (4, 1, 1, 1))
    assert target.token_index == (0, 1, 2, 3)
    assert [span.state for span in target.spans] == ["normal"]
