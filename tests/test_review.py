"""The incident review: its sections, what may be said, and that nothing in a log becomes markup."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from markdown_it import MarkdownIt

from forensics.explain import explain, explain_with_spread
from forensics.load import load
from forensics.reports import markdown
from forensics.review import actions
from forensics.text import code, mermaid
from forensics.text import markdown as inline
from forensics.timeline import Thresholds
from tests.story import GREEDY, Story

if TYPE_CHECKING:
    from pathlib import Path

    from forensics.explanation import Explanation

A, B = (1, 2, 3, 4), (1, 2, 9, 9)
VIEWER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
HOSTILE = (
    "`a|b`", "x|y", "# h\n## h2", '%%{init: {"theme":"x"}}%%', "end", '"q"', "](javascript:alert(1))",
    "[a](http://evil)", "<script>x</script>", "https://evil.com www.evil.com a@b.c", "![i](x)", "```\nx", "~~~", "- l",
    "1. l", "*b* _i_ **bb**", "\x1b[31m\u202e", "$x$", "&lt;", "| a | b |", "\\|", "``", "<!--", "    indented",
    "=====", "---", "> q", "end of\r\nline",
)  # fmt: skip

MIXED = (" ".join(HOSTILE[:9]), " ".join(HOSTILE[9:]), "- l", "<!--", "x\n\n# h")


def loaded(req: str = "load", **load: Any) -> Story:
    story = Story().engine().request("idle-1", A).request("idle-2", A)
    return story.request(req, B, rows=4, drift=0.25, **load)


def told(folder: Path, story: Story, req: str = "load", against: str | None = None) -> Explanation:
    with story.tell(folder) as store:
        return explain_with_spread(store, req, against, Thresholds())


def review(explanation: Explanation, picture: str | None = None) -> str:
    out = io.StringIO()
    markdown.render(explanation, out, picture=picture)
    return out.getvalue()


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def shape(text: str) -> list[str]:
    """Return the block structure that a viewer sees, and every link, image and piece of HTML."""
    found = []
    for token in VIEWER.parse(text):
        found.append(f"{token.type} {token.tag} {token.info if token.type == 'fence' else ''}")
        found += [
            f"{one.type} {one.attrs} {one.content}"
            for one in token.children or ()
            if one.type in ("link_open", "image", "html_inline")
        ]
    return found


def shown(text: str) -> str:
    """Return the text of one inline markdown as a viewer shows it."""
    (token,) = (one for one in VIEWER.parse(text) if one.type == "inline")
    return "".join(one.content for one in token.children or ())


@pytest.mark.parametrize("evil", HOSTILE)
def test_log_text_is_shown_as_it_is(evil: str) -> None:
    line = (
        evil.replace("\n", "\\u{a}").replace("\r", "\\u{d}").replace("\x1b", "\\u{1b}").replace("\u202e", "\\u{202e}")
    )
    for written in (inline(evil), code(evil)):
        assert shown(written).strip() == line.strip()
        cell = f"| a | b |\n| --- | --- |\n| {written} | x |"
        assert [one.content for one in VIEWER.parse(cell) if one.type == "inline"][-1] == "x", (
            "the cell did not end early"
        )


@pytest.mark.parametrize("evil", MIXED)
@pytest.mark.parametrize("where", ["id", "client", "reason", "configuration", "event"])
def test_a_hostile_log_has_the_structure_of_a_tame_one(tmp_path: Path, evil: str, where: str) -> None:
    texts = []
    for number, value in enumerate(("tame", evil)):
        fields: dict[str, Any] = {
            "client": {"external_req_id": value}, "reason": {"finish_reason": value},
            "configuration": {"cfg": GREEDY | {"stop": value}},
        }.get(where, {})  # fmt: skip
        req = value if where == "id" else "load"
        story = loaded(req, **fields)
        if where == "event":
            story.add("event", engine_step=9, what=value, detail={value: value}, req_id=value)
        against = "idle-1" if where == "configuration" else None
        texts.append(review(told(tmp_path / str(number), story, req, against), picture="review-timeline"))
    tame, hostile = map(shape, texts)
    assert hostile == tame
    assert sum(line.startswith("image") for line in tame) == 1
    assert not {"\x1b", "\u202e"} & set(texts[1])


def test_no_log_text_is_linked(tmp_path: Path) -> None:
    """A viewer links bare addresses and mentions wherever they stand in text; only code spans are safe."""
    found = told(tmp_path, loaded("https://evil.com/@everyone"), "https://evil.com/@everyone")
    for token in VIEWER.parse(review(found)):
        texts = [one.content for one in token.children or () if one.type == "text"]
        assert not [text for text in texts if "://" in text or "@" in text]


def test_a_flowchart_label_holds_no_syntax() -> None:
    for evil in (*HOSTILE, "end", "a; b", "x --> y", "#quot;"):
        label = mermaid(evil)
        assert label[0] == label[-1] == '"'
        assert re.fullmatch(r"(?:[A-Za-z0-9 _.,:=]|#\d+;)*", label[1:-1]), label


def test_the_flowchart_is_the_chain(tmp_path: Path) -> None:
    found = told(tmp_path, loaded())
    (chart,) = (
        token.content for token in VIEWER.parse(review(found)) if token.type == "fence" and token.info == "mermaid"
    )
    assert chart.startswith("flowchart TD\n")
    for place, link in enumerate(found.chain):
        assert f'n{place} -->|"{link.grade}"| n{place + 1}' in chart
        assert link.effect in chart


def test_all_sections_are_there(tmp_path: Path) -> None:
    text = review(told(tmp_path, loaded()))
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "Summary", "Impact", "What is compared", "Timeline",
        "Which execution regime ran, and what pushed us into it?", "The flip", "Causal chain", "Proof", "Evidence",
        "Contract completeness", "Mitigation", "What we cannot claim", "Follow-ups", "Commands to reproduce",
    ]  # fmt: skip


def test_the_summary_is_three_to_five_sentences(tmp_path: Path) -> None:
    text = section(review(told(tmp_path, loaded())), "Summary")
    assert 3 <= len(re.findall(r"[.] (?=[A-Z])|[.]\s*$", text)) <= 5
    assert "no replay has proven it" in text


def test_impact_counts(tmp_path: Path) -> None:
    story = loaded().request("again", A, prompt=(1, 1)).request("other", B, prompt=(1, 1), rows=2, drift=0.25)
    found = told(tmp_path, story)
    assert found.consequence is not None
    assert found.spread is not None
    assert (found.consequence.positions, found.consequence.differing) == (2, 2)
    assert (found.spread.requests, found.spread.divergent, found.spread.same_run) == (5, 2, 2)
    assert [one.req_id for one in found.spread.others] == ["other"], "the request itself is not another one"
    text = section(review(found), "Impact")
    assert "2 of 2 positions" in text
    assert "2 divergent request(s) among 5" in text
    assert "`other`" in text


def test_what_a_gateway_says_is_no_request_of_its_own(tmp_path: Path) -> None:
    story = loaded()
    story.add("request", req_id="load", run_id="", replica_id="", seq=None, writer=None, tenant_sha256="t" * 64)
    found = told(tmp_path, story)
    assert found.spread is not None
    assert found.spread.requests == 3


def test_the_answer_about_regimes(tmp_path: Path) -> None:
    title = "Which execution regime ran, and what pushed us into it?"
    story = loaded()
    assert "no change of regime pushed this request" in section(review(told(tmp_path / "calm", story)), title)
    tight = [one for one in story.records if one["kind"] == "batch" and one["batch_size"] == 4][1:]
    for record in tight:
        record |= {"paging_on": True}
    found = told(tmp_path / "tight", story)
    text = section(review(found), title)
    assert "The target ran in `normal` → `paging`." in text
    assert "first changed its regime at output token 1, before or at the flip at 2" in text
    assert any("regime normal → paging" in one.what and one.step == 1 for one in found.history)
    for record in tight:
        record.pop("paging_on")
    text = section(review(told(tmp_path / "unknown", story)), title)
    assert "`unknown`" in text


def test_the_clock(tmp_path: Path) -> None:
    story = loaded()
    (whole,) = (one for one in story.records if one["kind"] == "request" and one["req_id"] == "load")
    whole["admission_ts"] = whole["arrival_ts"] + 0.5
    story.add("event", engine_step=9, what="eviction", detail={"blocks": 7}, req_id="load")
    for record in story.records:
        if record["kind"] == "step" and record["req_id"] == "load" and record["step"] == 1:
            record["resumed"] = True
    said = [one.what for one in told(tmp_path, story).history if one.arm == "target"]
    for what in (
        "arrived", "admitted, 500.0 ms after arrival", "first launch: 4 rows, 16 tokens; regime normal",
        "preempted; KV computed again", "FLIP: output token 2", "event: eviction of load (blocks 7)",
    ):  # fmt: skip
        assert what in said


def test_many_moments_are_counted(tmp_path: Path) -> None:
    story = loaded()
    for _ in range(30):
        story.add("event", engine_step=9, what="eviction")
    story.add("event", engine_step=9, what="abort", req_id="load")
    said = [one.what for one in told(tmp_path, story).history]
    assert "event: abort of load" in said, "what happened to the request itself comes first"
    assert said.count("event: eviction") == 11
    assert "event: 19 more, not listed" in said


def test_cited_records_are_printed(tmp_path: Path) -> None:
    found = told(tmp_path, loaded())
    cited = {citation for finding in found.findings for citation in finding.citations}
    assert {one.citation for one in found.exhibits} == cited
    assert "`batch_tokens=16`" in section(review(found), "Evidence")


def test_coverage_of_both_arms(tmp_path: Path) -> None:
    story = loaded()
    for record in story.records:
        if record["kind"] == "batch" and record["batch_size"] == 4:
            record.pop("graph_mode")
    found = told(tmp_path, story)
    (graph,) = (one for one in found.coverage if one.field == "batch.graph_mode")
    assert (graph.target, graph.reference) == (0.0, 1.0)
    row = next(line for line in section(review(found), "Contract completeness").splitlines() if "graph_mode" in line)
    assert [cell.strip() for cell in row.split("|")[2:4]] == ["missing", "on record"]


def test_no_number_is_invented_for_a_mitigation(tmp_path: Path) -> None:
    text = section(review(told(tmp_path, loaded())), "Mitigation")
    assert text.count(actions.UNKNOWN) == text.count(actions.UNTRIED) == 5
    assert "measured here" not in text
    assert not re.search(r"\d ?(%|ms|x\b|times)", text)


def verdict(reference: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "forensics.verdict/1", "outcome": "proven", "claim": "exchanging batch.rows exchanges the results",
        "req_id": "load", "run_id": "run-1", "case_sha256": "c" * 64, "reference": reference,
        "factors": [{"factor": "batch.rows", "incident": "4", "reference": "1"}],
        "trials": [
            {"name": "restored: incident with batch.rows of the reference", "bits_equal": "reference"},
            {"name": "induced: reference with batch.rows of the incident", "bits_equal": "incident"},
        ],
    }  # fmt: skip


def test_what_a_verdict_measured(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_text(json.dumps(verdict({"run_id": "run-1", "req_id": "idle-1", "synthetic": False})), encoding="utf-8")
    with loaded().tell(tmp_path / "told") as store:
        load([path], store, None)
        found = explain(store, "load")
    text = review(found)
    assert "measured here: gave the reference's bits" in section(text, "Mitigation")
    assert "replay proves that batch.rows carries the flip, what is below is supported" in found.headline
    assert "Prove or refute" not in section(text, "Follow-ups")
    assert "synthetic" not in text


def test_a_synthetic_reference_is_labelled(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_text(
        json.dumps(verdict({"run_id": "synthetic", "req_id": "alone", "synthetic": True})), encoding="utf-8"
    )
    with Story().engine().request("load", B, rows=4).tell(tmp_path / "told") as store:
        load([path], store, None)
        found = explain(store, "load")
    assert found.standing == "no_reference"
    assert "as a synthetic reference: proven" in found.headline
    text = review(found)
    assert "**synthetic**" in section(text, "What is compared")
    assert "nobody recorded that run" in section(text, "Proof")
    assert any("synthetic" in claim for claim in found.cannot_claim)


def test_a_chosen_reference_is_labelled(tmp_path: Path) -> None:
    assert "**chosen**" in section(review(told(tmp_path, loaded(), against="idle-2")), "What is compared")


def test_without_a_reference_the_review_still_says_what_is_known(tmp_path: Path) -> None:
    text = review(told(tmp_path, Story().engine().request("load", A)))
    assert "Nothing to compare with" in section(text, "Summary")
    assert "Causal chain" not in text
    assert "forensics contract load" in section(text, "Commands to reproduce")
