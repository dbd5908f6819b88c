"""Traced steps at costs that sums can be done with by hand."""

import pandas as pd
import pytest

from specquant.decoding.drafters import METHODS
from specquant.decoding.method import Plan
from specquant.decoding.traces import Trace
from specquant.errors import SpecquantError
from specquant.planning.planner import Planner
from specquant.planning.traced_speedups import ALL, beside_hierarchy, best_plans, step_ms, traced_speedups
from tests.planning.conftest import SMALL, TARGET

ABOUT = {"model": "m", "scheme": "fp16", "weights": "trained", "benchmark": "b", "temperature": 0.0}
TREE = "3111/00"  # seven nodes, two accepted
OF_TREE_MS = 3 + 16 + 0.5  # three iterations, a pass over 7 tokens, the rest
ONE_MS = 10.5


def traces(*rows: tuple[Plan, str, str], **columns) -> pd.DataFrame:
    return pd.DataFrame([ABOUT | plan.__dict__ | {"task": task, "id": "1", "steps": text} for plan, task, text in rows])


@pytest.mark.parametrize(
    ("plan", "step", "time_ms"),
    [
        (Plan("eagle2", 7, 3), TREE, OF_TREE_MS),
        (Plan("eagle2", 7, 3), "/", ONE_MS),  # no room for a draft
        (Plan("suffix"), "111111/0", 16.5),  # no draft's time: a search on the host
        (Plan("suffix-eagle2", 7, 3), "111111/0", 16.5),  # the lookup's
        (Plan("suffix-eagle2", 7, 3), TREE, OF_TREE_MS),  # the head's
        (Plan("suffix"), TREE, 16.5),  # of several branches
        (Plan("hierarchical-suffix", min_draft_length=3), f"111/0={TREE}", 3.25 + 13.5),
        (Plan("vanilla", min_draft_length=6), "111111/00", 6 * 2.25 + 16.5),
        # A draft of six tokens: three and two of trees, one of a pass without a draft.
        (Plan("hierarchical", 7, 3, 6), "111111/0=3111/00+3111/0", 2 * (1 + 3 + 0.25) + 2.25 + 16.5),
        (Plan("hierarchical-suffix", min_draft_length=6), "111111/0=111111/0000", 3.25 + 2.25 + 16.5),
    ],
    ids=str,
)
def test_a_step_takes_what_its_drafts_and_passes_take(plan, step, time_ms):
    assert step_ms(Trace.read(step), plan, Planner(TARGET, SMALL)) == pytest.approx(time_ms)


def test_every_method_has_a_price():
    for method in METHODS.values():
        plan = Plan(method.name, 7, 3, 6) if method.head else Plan(method.name)
        assert step_ms(Trace.read("111111/0"), plan, Planner(TARGET, SMALL)) >= 16.5


def test_speedups_are_ratios_of_sums():
    head, suffix = Plan("eagle2", 7, 3), Plan("suffix")
    rows = traces((head, "a", f"{TREE} {TREE}"), (head, "b", "/"), (suffix, "a", "111111/00"), (suffix, "b", "/"))
    table = traced_speedups(rows, {"eagle": Planner(TARGET)})
    told = table.set_index(["method", "task"])
    assert told.accepted_length["eagle2", "a"] == 3
    assert told.speedup["eagle2", "a"] == pytest.approx(3 * ONE_MS / OF_TREE_MS)
    assert told.speedup["eagle2", ALL] == pytest.approx(7 * ONE_MS / (2 * OF_TREE_MS + ONE_MS))
    assert told.speedup_low["eagle2", ALL] == pytest.approx(1)
    assert told.speedup_high["eagle2", ALL] == pytest.approx(3 * ONE_MS / OF_TREE_MS)
    assert told.questions["eagle2", ALL] == 2
    assert set(best_plans(table)[best_plans(table).task == "a"].method) == {"eagle2", "suffix"}


def test_accepted_lengths_are_those_of_all_questions_where_they_are_known():
    """A step takes as long as those that were traced; what it brings is what many questions say."""
    head = Plan("eagle2", 7, 3)
    rows = traces((head, "a", f"{TREE} {TREE}"), (head, "b", "/"))
    known = {"accepted_length": [2.0, 1.5], "accepted_length_low": [1.9, 1.2], "accepted_length_high": [2.2, 1.8]}
    known |= {"questions": [80, 60], "steps": [300, 100], "task": ["a", "b"], "judged_tokens": 0}
    known |= dict.fromkeys(("acceptance_rate", "acceptance_rate_low", "acceptance_rate_high"), float("nan"))
    accepted = pd.DataFrame(known).assign(**ABOUT, **head.__dict__)
    told = traced_speedups(rows, {"eagle": Planner(TARGET)}, accepted).set_index("task")
    assert told.questions.to_dict() == {"a": 80, "b": 60, ALL: 140}
    assert told.speedup["a"] == pytest.approx(2 * ONE_MS / OF_TREE_MS)
    assert told.speedup_high["a"] == pytest.approx(2.2 * ONE_MS / OF_TREE_MS)
    assert told.accepted_length[ALL] == pytest.approx((2 * 300 + 1.5 * 100) / 400)
    assert told.speedup_low["b"] == pytest.approx(1.2)
    with pytest.raises(SpecquantError, match="lacks eagle2 on b, which was traced"):
        traced_speedups(rows, {"eagle": Planner(TARGET)}, accepted[:1])


def test_the_hierarchy_stands_beside_the_fastest_plan():
    """On task a EAGLE-2's seven nodes are faster than its nine, and than the hierarchy; b is the hierarchy's."""
    small, large, hierarchy = Plan("eagle2", 7, 3), Plan("eagle2", 9, 3), Plan("hierarchical", 7, 3, 6)
    handed = "111111/000000=3111/00+3111/00"
    rows = [(small, "a", TREE), (large, "a", "51111/00"), (hierarchy, "a", "111111/=3111/00+3111/00")]
    rows += [(small, "b", "/"), (large, "b", "/"), (hierarchy, "b", handed)]
    told = beside_hierarchy(traced_speedups(traces(*rows), {"eagle": Planner(TARGET, SMALL)}))
    assert told.fastest["a"] == "EAGLE-2, 7 nodes"
    assert told.ratio["a"] == pytest.approx((1 / 25) / (3 / OF_TREE_MS))
    assert told.fastest["b"] == "hierarchical, 7 nodes, at least 6 tokens"
    assert told.ratio["b"] == 1
    assert told.hierarchical["b"] == f"{7 * ONE_MS / 25:.2f} ({7 * ONE_MS / 25:.2f} to {7 * ONE_MS / 25:.2f})"


def test_an_eagle3_head_has_costs_of_its_own():
    rows = traces((Plan("eagle3", 7, 3), "a", TREE), (Plan("eagle2", 7, 3), "a", TREE))
    cheap = Planner(TARGET.__class__(TARGET.verify_ms, 0 * TARGET.draft_ms, TARGET.other_ms))
    told = traced_speedups(rows, {"eagle": Planner(TARGET), "eagle3": cheap}).set_index(["method", "task"]).speedup
    assert told["eagle3", ALL] / told["eagle2", ALL] == pytest.approx(OF_TREE_MS / (OF_TREE_MS - 3))


def test_what_cannot_be_compared_is_refused():
    rows = traces((Plan("suffix"), "a", "1/0"))
    for wrong in (rows.assign(temperature=1.0), pd.concat([rows, rows.assign(scheme="w8a8")])):
        with pytest.raises(SpecquantError, match="need greedy traces of one model in one scheme"):
            traced_speedups(wrong, {"eagle": Planner(TARGET)})
    with pytest.raises(SpecquantError, match="vanilla needs the costs of an intermediate model"):
        step_ms(Trace.read("1/0"), Plan("vanilla", min_draft_length=1), Planner(TARGET))
