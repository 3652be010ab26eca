"""Which passes carry the difference, and at which size of launch the first of them changes: in made-up worlds."""

import json

import pytest
from replay_worlds import make_case

from forensics.filed import parse
from replay.case import Arm, Asked, Window
from replay.company import added
from replay.passes import fewest_passes, launches
from replay.prove import prove
from replay.trial import Trace, Treatment
from replay.verdict import Found, History
from replay.workbench import MAX_TRIALS, Bench

FLIP, PROMPT, ROWS, NEWCOMER = 9, 3, 8, 20
CFG = {"temperature": 0, "max_tokens": FLIP + 1}
COMPANY, ALONE = {"company.requests": "incident"}, {"company.requests": "alone"}
PROVEN = Found("proven", "", ("company.requests",))
ENGINE = {"engine": "vllm", "weights_sha256": "w", "config": {"scheduler_config": {"async_scheduling": False}}}


def crowd():
    """Return an arm: every launch holds the request and seven others, in pass 4 one of them with a prompt."""
    steps = []
    for number in range(FLIP + 1):
        own = ("i", 1, PROMPT + number - 1) if number else ("i", PROMPT, 0)
        others = tuple((f"n{at}", NEWCOMER if (at, number) == (0, 4) else 1, 9) for at in range(ROWS - 1))
        steps.append((30 + number, (own, *others)))
    requests = [Asked(f"n{at}", 30, 4, CFG, (1, 2, 3, 4)) for at in range(ROWS - 1)]
    requests.append(Asked("i", 30, PROMPT, CFG, (3, 1, 4)))
    return Arm("run-i", "i", COMPANY, output_token_ids=(7,) * FLIP + (9,),
               window=Window(30, "idle", tuple(requests), schedule=tuple(steps)))  # fmt: skip


def calm():
    window = Window(0, "engine_start", (Asked("i", 0, PROMPT, CFG, (3, 1, 4)),))
    return Arm("run-r", "i", ALONE, output_token_ids=(7,) * FLIP + (8,), window=window)


class World:
    """An engine in which launches of `rows` or `tokens` and more have other bits; token: those passes → it turns."""

    def __init__(self, token, rows=ROWS, tokens=10**6, refuses=lambda _treatment: None):
        self.token, self.rows, self.tokens, self.refuses, self.ran = token, rows, tokens, refuses, []
        self.shapes = {number: shape for number, (_, *shape) in launches(crowd()).items()}

    def other(self, plan, number):
        """Return whether a pass under the plan has the other bits."""
        rows, tokens, own = self.shapes[number]
        if plan["company.requests"] != "incident":
            rows, tokens = (1, own) if plan["company.requests"] == "alone" else (2, own + 1)
        if (one := plan.get("company.added")) and added(one).at == number:
            rows, tokens = rows + added(one).rows, tokens + added(one).rows * added(one).tokens
        return rows >= self.rows or tokens >= self.tokens

    def __call__(self, _case, treatment):
        if treatment.plan.get("dtype.weights"):
            return Trace(treatment.plan, refused="no")
        if why := self.refuses(treatment):
            return Trace(treatment.plan, refused=why)
        self.ran.append(treatment)
        plans = [treatment.history if treatment.history and treatment.since <= number < treatment.switch
                 else treatment.plan for number in range(FLIP + 1)]  # fmt: skip
        turned = tuple(self.other(plan, number) for number, plan in enumerate(plans))
        bits = tuple(str(turned[: number + 1]) for number in range(FLIP + 1))
        return Trace(treatment.plan, (7,) * FLIP + (9 if self.token(turned) else 8,), bits,
                     observed=dict(treatment.plan))  # fmt: skip


def bench_of(world):
    bench = Bench(make_case(engine=ENGINE, incident=crowd(), reference=calm(), token_ids=(3, 1, 4)), world)
    assert bench.settle(bench.trial("i", COMPANY), bench.trial("r", ALONE))
    return bench


def found(world, history=None):
    return fewest_passes(bench_of(world), PROVEN, history or History("history", None, ""))


def spans(passes):
    return [(one.carry, one.first, one.last) for one in passes.stretches]


@pytest.mark.parametrize(("first", "last"), [(0, 0), (3, 5), (6, FLIP), (FLIP, FLIP), (0, 4)])
def test_the_stretch_that_turns_the_token_is_found(first, last):
    passes = found(World(lambda turned: all(turned[first : last + 1])))
    assert spans(passes) == [("bits", 0, FLIP), ("token", first, last)]
    assert passes.stretches[1].engine_steps == (30 + first, 30 + last)
    assert (passes.arm, passes.of) == ("incident", FLIP + 1)


def test_bits_that_all_passes_carry_are_no_shorter_stretch_twice():
    assert spans(found(World(all))) == [("bits", 0, FLIP)]


def test_the_pass_from_which_on_the_history_turns_it_is_not_sought_again():
    world = World(lambda turned: all(turned[3:6]))
    passes = found(world, History("history", 5, ""))
    assert spans(passes)[1] == ("token", 3, 5)
    anew = World(lambda turned: all(turned[3:6]))
    found(anew)
    assert len(world.ran) < len(anew.ran)


@pytest.mark.parametrize("border", [2, 5, ROWS])
def test_rows_and_launch_tokens_are_told_apart(border):
    by_rows = found(World(lambda turned: turned[4], rows=border)).border
    assert (by_rows.at, by_rows.rows, by_rows.launch_tokens) == (4, ROWS, ROWS + NEWCOMER - 1)
    assert (by_rows.fewest_rows, by_rows.fewest_tokens) == (border - 1, 1 if border == 2 else None)
    by_tokens = found(World(lambda turned: turned[4], rows=10**6, tokens=12)).border
    assert (by_tokens.fewest_rows, by_tokens.fewest_tokens) == (None, 11)


def test_where_the_other_arm_had_company_too_the_size_counts_from_its_own_launch():
    steps = [(number, (("i", 1, PROMPT + number - 1) if number else ("i", PROMPT, 0), ("n", 1, 5)))
             for number in range(FLIP + 1)]  # fmt: skip
    requests = (Asked("n", 0, 4, CFG, (1, 2, 3, 4)), Asked("i", 0, PROMPT, CFG, (3, 1, 4)))
    window = Window(0, "engine_start", requests, schedule=tuple(steps))
    reference = Arm("run-r", "i", {"company.requests": "reference"}, window=window)
    case = make_case(engine=ENGINE, incident=crowd(), reference=reference, token_ids=(3, 1, 4))
    bench = Bench(case, World(lambda turned: turned[4], rows=6))
    assert bench.settle(bench.trial("i", COMPANY), bench.trial("r", reference.plan))
    border = fewest_passes(bench, PROVEN, History("history", None, "")).border
    assert (border.at, border.fewest_rows, border.fewest_tokens) == (4, 4, None)


def test_what_cannot_be_run_is_open_and_no_smaller_stretch_is_claimed():
    passes = found(World(lambda turned: turned[4], refuses=lambda one: "no room" if one.since else None))
    assert spans(passes) == [("bits", 0, FLIP)]
    assert "not ruled out: no room" in passes.detail
    refused = World(lambda turned: turned[4], refuses=lambda one: "no room" if "added" in str(one.plan) else None)
    border = found(refused).border
    assert (border.fewest_rows, border.fewest_tokens) == (None, None)
    assert "no room" in border.detail


def test_nothing_is_said_without_a_proof_or_where_keys_and_values_do_not_move():
    bench = bench_of(World(all))
    assert fewest_passes(bench, Found("inconclusive", "", ()), History("both", None, "")) is None
    assert fewest_passes(bench, PROVEN, History("open", None, "")) is None


def test_the_whole_proof_stays_within_the_budget_and_the_report_names_the_steps():
    world = World(lambda turned: all(turned[3:6]), rows=4)
    case = make_case(engine=ENGINE, incident=crowd(), reference=calm(), token_ids=(3, 1, 4))
    verdict = prove(case, [], world, weights_sha256="w")
    assert len({one.execution for one in verdict.trials}) <= MAX_TRIALS
    assert verdict.passes is not None
    told = " ".join(parse(json.loads(verdict.to_json()), "v.json").findings)
    assert "3 to 5 (engine steps 33 to 35) as in the incident are enough for its token" in told
    assert "pass 3 ran in a launch of 8 rows and 8 tokens; there 3 more rows of one token" in told


def test_a_treatment_with_another_beginning_is_another_treatment():
    assert Treatment(ALONE, COMPANY, 5).key() != Treatment(ALONE, COMPANY, 5, since=2).key()


def test_launches_count_recomputed_passes_once():
    rows = [(0, (("i", 2, 0),)), (1, (("i", 1, 2),)), (2, (("n", 1, 5),)), (3, (("i", 1, 3),)), (4, (("i", 5, 0),))]
    window = Window(0, "idle", (Asked("i", 0, 3, CFG), Asked("n", 0, 3, CFG)), schedule=tuple(rows))
    assert launches(Arm("r", "i", {}, window=window)) == {0: (1, 1, 1, 1), 1: (3, 1, 1, 1), 2: (4, 1, 5, 5)}
