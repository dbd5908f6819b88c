"""What was traced, as chances for the planner: counted by hand, and as decoding again gives it."""

import pandas as pd
import pytest

from specquant.cli import main
from specquant.decoding.method import Plan
from specquant.errors import SpecquantError
from specquant.planning.traces import Traces
from specquant.study import read_results, write_results
from tests.planning.conftest import plan_table

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


def test_tasks_take_turns():
    rows = traces()[:1]
    steps = {("a", "1"): "21/0", ("a", "2"): "21/", ("b", "3"): "21/00", ("b", "4"): "21/1"}
    both = pd.concat(rows.assign(task=task, id=which, steps=text) for (task, which), text in steps.items())
    assert [tree.path for tree in Traces(both).trees(EAGLE)] == [(1,), (1, 3), (), (2,)]


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


def test_what_a_lookup_drafted_alone_below_a_model_and_before_a_head():
    """Text by text: alone every step counts; below a model its rounds; before a head nothing where that drafted."""
    steps = {
        Plan("suffix"): "11/0 /",
        Plan("hierarchical-suffix", min_draft_length=3): "111/00=1/0 1/=1/",
        Plan("suffix-eagle2", 4, 2): "21/00 11/00 2/ /",
    }
    rows = pd.concat(traces(**plan.__dict__, steps=text)[:1] for plan, text in steps.items())
    told = Traces(rows)
    found = {plan: [len(each.parents) - 1 for each in told.lookups(plan)] for plan in steps}
    assert list(found.values()) == [[2, 0], [0, 1], [0, 2]]
    assert [tree.path for tree in told.trees(Plan("suffix-eagle2", 4, 2))] == [(1, 3)]
    assert told.sequences(Plan("hierarchical-suffix", min_draft_length=3)) == [2]
    for plan in steps:
        told.require(plan)


@pytest.mark.parametrize(
    ("plan", "text", "says"),
    [
        (EAGLE, "21/ 211/", "hold a draft of 5 nodes, and its drafts have at most 4"),
        (HIERARCHY, "11/00=2/1 11/=21/0", "hold a draft of 4 nodes, and its drafts have at most 3"),
        (VANILLA, "11/0 111/", "hold 3 tokens that were handed up, where at most 2 could be"),
        (Plan("suffix"), "1" * 11 + "/", "hold a draft of 12 nodes, and its drafts have at most 11"),
        (Plan("autoregressive"), "1/", "hold a draft of 2 nodes, and its drafts have at most 1"),
    ],
)
def test_drafts_that_are_larger_than_the_plan_s_are_refused(plan, text, says):
    with pytest.raises(SpecquantError, match=f"traces of {plan.method}.* {says}: trace that plan again"):
        Traces(traces(**plan.__dict__, steps=text)[:1]).require(plan)


def test_a_lookup_that_was_never_asked_is_refused():
    with pytest.raises(SpecquantError, match=r"no drafts of hierarchical-suffix .* were traced: trace that plan"):
        Traces(traces(method="hierarchical-suffix", steps="/")).lookups(Plan("hierarchical-suffix", 4, 2, 2))


def test_the_planner_predicts_what_the_paper_does_not_have_from_the_steps_themselves(capsys):
    """As `traced_speedups` does, on the same steps: a lookup takes no time, and EAGLE-3's head has costs of its own."""
    recorded = "data/recorded/h200/smollm2/traces.csv"
    options = {"traces": recorded, "traced_scheme": "fp16"}
    table = plan_table("data/recorded/h200", "llama-3-70b", "llama-3-8b", head_scheme="w4a16-g128", **options)
    assert {"eagle3", "suffix", "suffix-eagle2", "prompt-lookup-eagle2", "hierarchical-suffix"} <= set(table.method)
    rows = table.set_index("method").sort_values("tokens_per_s").groupby("method").tail(1)
    suffix = Traces(read_results(recorded), traced_scheme="fp16").steps(Plan("suffix"))
    assert rows.accepted_length["suffix"] == pytest.approx(sum(len(step.path) + 1 for step in suffix) / len(suffix))
    assert (rows.draft_ms["suffix"], rows.inner_rounds["suffix"]) == (0, 0)
    assert 0 < rows.draft_ms["suffix-eagle2"] < rows.draft_ms["eagle2"] * 2.5
    assert rows.inner_rounds["hierarchical-suffix"] > 4
    alone = plan_table("data/recorded/h200", "llama-3-70b", **options)
    assert not {"eagle3", "hierarchical-suffix"} & set(alone.method)
    assert (
        "eagle3 (60 nodes, 6 iterations) is left out: no draft of such a head was measured" in capsys.readouterr().err
    )
    with pytest.raises(SpecquantError, match="the traces hold no step in w8a8: choose one of fp16, w4a16-g128"):
        plan_table("data/recorded/h200", "llama-3-70b", traces=recorded, traced_scheme="w8a8")


def test_what_needs_an_intermediate_model_is_told_where_there_is_none(tmp_path, capsys):
    recorded = read_results("data/recorded/h200/smollm2/traces.csv")
    file = tmp_path / "traces.csv"
    words = ["plan", "--traces", str(file), "--rows", "1"]
    recorded[recorded.method.isin(["eagle2", "hierarchical", "vanilla"])].to_csv(file, index=False)
    assert main(words) == 0
    assert (
        "left out for want of an intermediate model (--intermediate): hierarchical, vanilla\n"
        in capsys.readouterr().err
    )
    recorded[recorded.method == "hierarchical"].to_csv(file, index=False)
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.err == (
        "specquant: the traces hold no other drafts than of hierarchical, for which an intermediate model is needed: "
        "name one (--intermediate)\n"
    )
    assert not told.out
    assert main([*words, "--intermediate", "llama-3-8b"]) == 0
