"""History against step on a real vLLM: a request's keys and values, moved between runs with and without company."""

import importlib.util

import pytest

if getattr(importlib.util.find_spec("vllm"), "origin", None) is None:
    pytest.skip("vLLM is not in this environment (make test-vllm)", allow_module_level=True)

from made import ALONE, COMPANY, TOKENS, asked, made_case, run_case

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

CHUNKED = ALONE | {"engine.token_budget": "16"}
LAST = TOKENS - 1

OTHERS = """
from dataclasses import replace
plan = json.loads(sys.argv[3])[0]["plan"]
own = engine._kept(plan, 4, None)
changed = replace(own, layers={name: held * 1.5 for name, held in own.layers.items()})
trace, _ = engine._run(plan, engine.case.horizon(), changed)
found.append({"bits": trace.logits_sha256})
"""


def test_keys_and_values_put_back_change_no_bit(tmp_path):
    plans = (COMPANY, ALONE)
    crossed = [{"plan": plan, "history": plan, "switch": switch, "since": since} for plan in plans
               for switch, since in ((LAST, 0), (3, 0), (1, 0), (7, 4))]  # fmt: skip
    found = run_case(tmp_path, made_case(), *({"plan": one} for one in plans), *crossed)
    assert [one["missing"] for one in found] == [None] * len(found)
    for at, plan in enumerate(plans):
        same = {tuple(one["bits"]) for one in [found[at], *found[2 + 4 * at : 6 + 4 * at]]}
        assert len(same) == 1, plan
    assert len(found[0]["bits"]) == TOKENS


def test_other_keys_and_values_are_seen_from_their_pass_on(tmp_path):
    plain, changed = run_case(tmp_path, made_case(), {"plan": COMPANY}, then=OTHERS)
    assert changed["bits"][:4] == plain["bits"][:4]
    assert all(one != other for one, other in zip(changed["bits"][4:], plain["bits"][4:], strict=True))


def test_they_go_between_engines_with_and_without_company(tmp_path):
    crossed, back = run_case(
        tmp_path, made_case(), {"plan": CHUNKED, "history": COMPANY, "switch": 5},
        {"plan": COMPANY, "history": CHUNKED, "switch": 8, "since": 3},
    )  # fmt: skip
    assert (crossed["missing"], back["missing"]) == (None, None)
    assert crossed["observed"] == CHUNKED
    assert len(crossed["bits"]) == len(back["bits"]) == TOKENS


def test_keys_and_values_of_another_dtype_are_refused(tmp_path):
    (found,) = run_case(
        tmp_path, made_case(), {"plan": ALONE, "history": ALONE | {"dtype.weights": "float32"}, "switch": 2}
    )
    assert "differ in form or dtype" in found["missing"] or "chose different tokens" in found["missing"]


def test_where_the_engine_throws_them_away_it_is_refused(tmp_path):
    """Three requests that outgrow the pool: the last to come, the target, is preempted and computed again."""
    case = made_case(lambda own: [asked("n", 0, 90), asked("nn", 0, 90), own], blocks=9)
    found = run_case(tmp_path, case, {"plan": COMPANY}, *(
        {"plan": COMPANY, "history": ALONE, "switch": switch} for switch in range(1, TOKENS)
    ))  # fmt: skip
    assert found[0]["details"]["own_preemptions"] == 1
    assert sum("preempted" in str(one["missing"]) for one in found) == 1
