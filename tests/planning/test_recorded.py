"""Planners from recorded tables, and what `specquant plan` prints of them."""

import pandas as pd
import pytest

from specquant.cli import main
from specquant.decoding.method import Plan
from specquant.errors import SpecquantError
from specquant.planning.acceptance import Chances, Shapes
from specquant.planning.costs import recorded_tables, too_slow
from specquant.planning.recorded import RecordedCosts, plan_tables, specmquant_planner
from specquant.tables.results import read_medians, read_results
from tests.planning.conftest import plan_table

RECORDED = "data/recorded/h200"


@pytest.mark.parametrize("plan", [Plan("eagle2", 24, 3), Plan("eagle2", 48, 6)])
def test_the_steps_of_the_paper_s_code_take_as_long_as_measured(plan):
    passes, steps = (read_results(f"data/published/specmquant_{table}.csv") for table in ("verify_cost", "steps"))
    shapes = Shapes.of(read_results("data/recorded/cpu/trees.csv"))
    row = specmquant_planner(passes, steps, "H100").predict(plan, shapes.statistics(Chances([0.8], [0.8], 0.8)))
    measured = steps[(steps.what == "step") & (steps.model == "llama-3-70b") & (steps.draft_size == plan.draft_size)]
    measured = measured[measured.gpu == "H100"]
    assert row["draft_ms"] + row["verify_ms"] + row["other_ms"] == pytest.approx(measured.time_ms.iloc[0], rel=0.02)


def test_a_card_that_the_paper_s_code_was_not_timed_on_is_refused():
    passes, steps = (read_results(f"data/published/specmquant_{table}.csv") for table in ("verify_cost", "steps"))
    for gpu, kept in (("H900", steps), ("H200", steps[steps.gpu != "H200"])):
        with pytest.raises(SpecquantError, match=f"specmquant_steps.csv do not both have rows of {gpu}: name a card"):
            specmquant_planner(passes, kept, gpu)


def test_costs_that_were_not_recorded_are_refused():
    """Not a plan whose bookkeeping takes NaN milliseconds."""
    costs = RecordedCosts.read(RECORDED)
    assert costs.planner("llama-3-70b", "llama-3-8b", "w4a16-g128", "fp16").target.other_ms > 0
    with pytest.raises(SpecquantError, match="nothing was recorded with model mine, only with llama-3-70b"):
        costs.planner("mine", "llama-3-8b", "w4a16-g128", "fp16")
    with pytest.raises(SpecquantError, match="nothing was recorded with head_scheme w8a8, only with fp16"):
        costs.planner("llama-3-70b", "llama-3-8b", "w4a16-g128", "w8a8")


@pytest.mark.parametrize("heads", ["fp16", "w4a16-g128"])
def test_bookkeeping_is_that_of_the_paper_s_plans_with_the_heads_that_are_asked_for(heads):
    """replayed.csv has both heads, and the planner's plans, of several hosts: the median over all is that of none."""
    costs = RecordedCosts.read(RECORDED)
    own = costs.replayed.query("model == 'llama-3-70b' and head_scheme == @heads and chances == 'fitted'")
    planner = costs.planner("llama-3-70b", "llama-3-8b", "w4a16-g128", heads)
    assert planner.target.other_ms == own.other_ms.median() != costs.replayed.other_ms.median()


def test_the_fastest_plan_comes_first():
    table = plan_table(RECORDED, "llama-3-70b", "llama-3-8b")
    assert table.tokens_per_s.is_monotonic_decreasing
    assert set(table.method) == {"autoregressive", "vanilla", "eagle2", "hierarchical"}


def test_speedups_compare_with_decoding_one_by_one():
    table = plan_table(RECORDED, "llama-3-70b", "llama-3-8b").set_index("method")
    passes = read_medians(f"{RECORDED}/verify_cost.csv").query("model == 'llama-3-70b' and scheme == 'w4a16-g128'")
    one_ms = passes[(passes.draft_size == 1) & (passes.context_length == 512)].time_ms.iloc[0]
    assert table.tokens_per_s["autoregressive"] == pytest.approx(1e3 / one_ms)
    assert table.speedup["autoregressive"] == 1


def test_chances_decide():
    useless = plan_table(
        RECORDED, "llama-3-70b", "llama-3-8b", chances={"head": 0.1, "inner_head": 0.1, "agreement": 0.1}
    )
    assert useless.iloc[0].method == "autoregressive"
    good_head = plan_table(RECORDED, "llama-3-70b", "llama-3-8b", chances={"head": 0.95, "agreement": 0.3})
    assert good_head.iloc[0].method == "eagle2"


def test_without_an_intermediate_model(capsys):
    assert main(["plan", "--target", "llama-3-8b", "--scheme", "w8a8", "--rows", "3"]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert [line.split()[0] for line in lines] == ["method", *["eagle2"] * 3, "autoregressive"]
    assert (
        "llama-3-8b in w8a8, heads in fp16, by the costs in data/recorded/h200: predicted; acceptance is assumed"
        in told.err
    )


def test_the_fastest_plan_of_every_method_is_told(capsys):
    assert main(["plan", "--intermediate", "llama-3-8b", "--rows", "2"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    methods, speeds = [line.split()[0] for line in lines], [float(line.split()[-2]) for line in lines]
    assert methods[:2] == ["hierarchical", "hierarchical"]  # as many as are asked for
    assert sorted(methods[2:]) == ["autoregressive", "eagle2", "vanilla"]
    assert speeds == sorted(speeds, reverse=True)


def test_nodes_of_a_hierarchys_tree_are_not_called_its_draft_size(capsys):
    """The target verifies the sequence that the intermediate model made of that tree."""
    assert main(["plan", "--intermediate", "llama-3-8b", "--rows", "1"]) == 0
    head, fastest, *_ = capsys.readouterr().out.splitlines()
    shown = dict(zip(head.split(), fastest.split(), strict=True))
    best = plan_table(RECORDED, "llama-3-70b", "llama-3-8b").iloc[0]
    assert (shown["method"], shown["nodes"]) == ("hierarchical", f"{best.draft_size}")
    assert shown["mean_draft_size"] == f"{best.mean_draft_size:.2f}"
    assert "draft_size" not in shown


@pytest.mark.parametrize(
    ("target", "intermediate", "slow"),
    [("llama-3-8b", "llama-3-70b", True), ("llama-3-8b", "llama-3-8b", True), ("llama-3-70b", "llama-3-8b", False)],
)
def test_an_intermediate_model_that_is_no_faster_than_the_target_is_told(target, intermediate, slow, capsys):
    assert main(["plan", "--target", target, "--intermediate", intermediate, "--rows", "1"]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"specquant: a pass of the intermediate model {intermediate} over one token takes ") == slow
    assert first.endswith(": it hardly pays unless it is faster, so name a smaller model (--intermediate)") == slow


def test_an_own_copy_in_fewer_bits_is_taken_without_a_word():
    """In tables with names of their own: shapes decide nothing, times do."""
    passes, drafting = recorded_tables(RECORDED, ["llama-3-70b"], "fp16", "fp16")
    copy = passes[(passes.model == "llama-3-70b") & (passes.scheme == "w4a16-g128")].assign(model="copy", scheme="fp16")
    tables = pd.concat([passes, copy]), drafting
    assert too_slow(tables, "llama-3-70b", "copy", "fp16") is None
    assert too_slow(tables, "copy", "llama-3-70b", "fp16")


def test_models_without_heads_are_told_and_not_left_out_in_silence(tmp_path, capsys):
    """Their methods do not stand in the table, which would look as if they had lost."""
    for name in ("verify_cost", "drafting"):
        rows = read_results(f"{RECORDED}/{name}.csv")
        rows[(rows.model != "llama-3-70b") | (name != "drafting")].to_csv(tmp_path / f"{name}.csv", index=False)
    assert main(["plan", "--recorded", str(tmp_path), "--intermediate", "llama-3-8b"]) == 0
    told = capsys.readouterr()
    assert "eagle2" not in told.out
    assert "drafts of heads in fp16 on llama-3-70b were not measured" in told.err
    assert "left out: measure some" in told.err


def test_heads_that_are_faster_are_told_with_what_they_would_reach(capsys):
    """In one sentence, which is what the same command with these heads says; where none are faster there is none."""
    tables = plan_tables(RECORDED, "llama-3-70b", "llama-3-8b")
    assert list(tables) == ["fp16", "w4a16-g128"]
    ours, theirs = (table.iloc[0].tokens_per_s for table in tables.values())
    assert theirs > 1.05 * ours
    plan = ["plan", "--intermediate", "llama-3-8b"]
    assert main(plan) == 0
    assert capsys.readouterr().err.splitlines()[1:] == [
        "specquant: heads in w4a16-g128 (--head-scheme w4a16-g128) would let the fastest plan reach "
        f"{theirs:.2f} tokens per second, {theirs / ours:.2f} times as many, if as much of what they draft is accepted"
    ]
    assert main([*plan, "--head-scheme", "w4a16-g128"]) == 0
    told = capsys.readouterr()
    assert f"{theirs:.2f}" in told.out
    assert "would let" not in told.err


def test_chances_of_an_intermediate_model_are_refused_where_there_is_none(capsys):
    assert main(["plan", "--agreement", "0.7", "--inner-head", "0.7"]) == 2
    assert "there is no intermediate model for --inner-head and --agreement: name one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scheme": "w4a16-g128-asym"}, "no pass of 'llama-3-70b' in w4a16-g128-asym"),
        (
            {"head_scheme": "w8a8"},
            r"drafting\.csv has no drafts of heads in w8a8, only in fp16, w4a16-g128: choose one of these \(--head",
        ),
        ({"chances": {"agreement": 1.5}}, "agreement is 1.5: it is a probability"),
        ({"recorded": "data/recorded/cpu"}, "there are no results at"),
    ],
)
def test_what_was_not_measured_is_refused(arguments, sentence):
    with pytest.raises(SpecquantError, match=sentence):
        plan_table(**{"recorded": RECORDED, "target": "llama-3-70b"} | arguments)
