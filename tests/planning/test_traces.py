"""What was traced, as chances for the planner: counted by hand, and as decoding again gives it."""

import pandas as pd
import pytest

from specquant.decoding.method import Plan
from specquant.errors import SpecquantError
from specquant.planning.recorded import plan_table
from specquant.planning.traces import Traces
from specquant.study import write_results

EAGLE, HIERARCHY, VANILLA = Plan("eagle2", 4, 2), Plan("hierarchical", 3, 1, 2), Plan("vanilla", min_draft_length=2)


def traces(**columns) -> pd.DataFrame:
    """Of EAGLE-2 0, 1 and 2 accepted drafts of whole trees; of sequences 2 of 2, 0 of 3, and one that was cut."""
    about = {"model": "m", "scheme": "fp16", "weights": "trained", "benchmark": "b", "task": "t", "temperature": 0.0}
    steps = {
        EAGLE: "21/ 21/0 21/00 21/00 2/1",
        HIERARCHY: "11/00=2/1 111/=2/+2/0 1/=2/1",
        VANILLA: "11/0 11/00",
    }
    rows = [about | plan.__dict__ | {"id": "1", "steps": text} for plan, text in steps.items()]
    return pd.DataFrame(rows).assign(**columns)


def test_statistics_are_counts():
    told = Traces(traces())
    assert [tree.path for tree in told.trees(EAGLE)] == [(), (1,), (1, 3), (1, 3)]
    assert [tree.path for tree in told.trees(HIERARCHY)] == [(2,), (), (1,)]  # without the cut step's
    assert told.sequences(HIERARCHY) == [None, 0]
    assert told.sequences(VANILLA) == [1, None]
    statistics = told.statistics()
    assert statistics.trees[4, 2].tolist() == [0.25, 0.25, 0.5]
    assert statistics.inner_trees[3, 1].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert statistics.accepted_length(EAGLE) == pytest.approx(1 + 1.25)


def test_agreement_is_by_its_place_where_enough_sequences_reached_it():
    rows = traces()
    rows = rows[rows.method == "vanilla"].assign(steps=" ".join(["111/0"] * 8 + ["111/00"] * 4 + ["111/"] * 8))
    statistics = Traces(rows).statistics()
    assert statistics.agreement == pytest.approx([12 / 20, 4 / 12])  # four reached the third place: too few


def test_the_targets_scheme_is_taken_where_it_was_traced_and_greedy_steps_alone():
    both = pd.concat([traces(), traces(scheme="w4a16-g128", steps="21/00"), traces(temperature=1.0, steps="21/")])
    assert len(Traces(both).trees(EAGLE)) == 4
    assert len(Traces(both, "w4a16-g128").trees(EAGLE)) == 1
    assert len(Traces(both, "w8a8").trees(EAGLE)) == 4
    with pytest.raises(SpecquantError, match="no step at temperature 0"):
        Traces(traces(temperature=1.0))
    with pytest.raises(SpecquantError, match=r"no trees of eagle2 \(8 nodes, 2 iterations\) were traced"):
        Traces(both).trees(Plan("eagle2", 8, 2))


def test_the_planner_takes_them(tmp_path):
    """Trees of the size of recorded costs, of which each accepts two: accepted lengths of 3, whatever is published."""
    rows = traces()
    rows = rows[rows.method == "eagle2"].assign(draft_size=24, iterations=3, steps="c" + "1" * 11 + "/00")
    write_results(rows, tmp_path / "traces.csv", {})
    table = plan_table("data/recorded/h200", "llama-3-70b", traces=tmp_path / "traces.csv").set_index("method")
    assert table.draft_size["eagle2"] == 24
    assert table.accepted_length["eagle2"] == 3
    with pytest.raises(SpecquantError, match="hold 0 drafts of an intermediate model, too few to tell their chances"):
        plan_table("data/recorded/h200", "llama-3-70b", "llama-3-8b", traces=tmp_path / "traces.csv")


def test_traces_of_two_models_are_not_mixed():
    with pytest.raises(SpecquantError, match="the traces are of m, other: keep the rows of one model"):
        Traces(pd.concat([traces(), traces(model="other")]))


def test_a_plan_without_whole_drafts_is_refused():
    rows = traces(steps="1/0 /")
    assert Traces(rows).sequences(Plan("autoregressive")) == []
    with pytest.raises(SpecquantError, match=r"no whole drafts of vanilla .* were traced: trace more of it"):
        Traces(rows).sequences(VANILLA)
