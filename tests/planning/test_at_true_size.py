import pandas as pd
import pytest

from specquant.decoding.method import Plan
from specquant.errors import SpecquantError
from specquant.planning.acceptance import Chances, Shapes, TreeShapes
from specquant.planning.at_true_size import (
    OVER_THE_SAME_SCHEME,
    RecordedCosts,
    beside_published,
    eagle2_speedups,
    free_drafts,
    largest_free_measured,
    over_accepted_lengths,
    replayed_against_fixed,
    shares_reached,
    specmquant_planner,
    speeds_over_chances,
)
from specquant.study import read_results
from specquant.tables.results import read_medians

TREES = pd.DataFrame({"draft_size": 3, "iterations": 2, "parents": ["-1 0 1", "-1 0 0"], "accepted_length": [2, 2]})


def test_speedups_are_the_planner_s():
    passes = {"model": "m", "scheme": ["fp16"] * 2 + ["w8a8"] * 2, "context_length": 512, "draft_size": [1, 3] * 2}
    passes = pd.DataFrame(passes).assign(time_ms=[4.0, 4.0, 2.0, 3.0])
    drafting = pd.DataFrame(
        {"model": "m", "head_scheme": "fp16", "head_vocabulary": 9, "iterations": [2], "time_ms": 0.5}
    )
    table = eagle2_speedups(passes, drafting, TREES, {"m": ((3, 2), 2.0)}, other_ms=0.0)
    assert dict(zip(table.scheme, table.speedup, strict=True)) == {
        "fp16": pytest.approx(2.0 * 4 / 4.5),
        "w8a8": pytest.approx(2.0 * 2 / 3.5),
    }


def test_the_paper_s_trees_stand_beside_the_paper_s_cards():
    speedups = pd.DataFrame({"model": "llama-3-8b", "scheme": "fp16", "draft_size": [60, 48], "iterations": 6})
    published = {"model": "Llama-3-8B", "method": ["eagle2", "eagle2", "vanilla"], "scheme": "fp16"}
    published = pd.DataFrame(published | {"gpu": ["A100", "RTX 3090", "A100"], "value": [2.3, 2.2, 9.0]})
    quantities = [OVER_THE_SAME_SCHEME, OVER_THE_SAME_SCHEME, "speedup over fp16 autoregressive"]
    published = published.assign(quantity=quantities)
    lines = beside_published(speedups.assign(speedup=[2.5, 9.0]), published, "H200")
    assert {name: dict(line) for name, line in lines.items()} == {
        "Llama-3-8B, A100, paper": {"fp16": 2.3},
        "Llama-3-8B, RTX 3090, paper": {"fp16": 2.2},
        "Llama-3-8B, H200, ours": {"fp16": 2.5},
        "Llama-3-70B, H200, ours": {},
    }


def test_a_speedup_is_proportional_to_the_accepted_length():
    speedups = pd.DataFrame({"model": "m", "scheme": ["a", "b"], "accepted_length": [4.0, 3.0], "speedup": [2.0, 0.5]})
    table = over_accepted_lengths(speedups, (2, 4))
    assert table.loc["m", "a"].tolist() == [2.0, 1.0, 2.0]
    assert table.loc["m", "b"].tolist() == pytest.approx([6.0, 1 / 3, 2 / 3])


def test_a_draft_is_free_up_to_the_first_slower_pass():
    times = pd.DataFrame([[10.0, 10.5, 12.0, 10.5], [10.0, 9.0, 11.0, 11.0]], columns=[1, 8, 16, 32])
    assert largest_free_measured(times).tolist() == [8, 32]


@pytest.mark.parametrize("plan", [Plan("eagle2", 24, 3), Plan("eagle2", 48, 6)])
def test_the_steps_of_the_paper_s_code_take_as_long_as_measured(plan):
    passes, steps = (read_results(f"data/published/specmquant_{table}.csv") for table in ("verify_cost", "steps"))
    shapes = Shapes.of(read_results("data/recorded/cpu/trees.csv"))
    row = specmquant_planner(passes, steps, "H100").predict(plan, shapes.statistics(Chances([0.8], [0.8], 0.8)))
    measured = steps[(steps.what == "step") & (steps.model == "llama-3-70b") & (steps.draft_size == plan.draft_size)]
    measured = measured[measured.gpu == "H100"]
    assert row["draft_ms"] + row["verify_ms"] + row["other_ms"] == pytest.approx(measured.time_ms.iloc[0], rel=0.02)


def test_picks_are_compared_under_every_acceptance_that_was_replayed():
    """Two chances of the target's head, two agreements: each plan counts where its own are those."""
    passes = {"scheme": "fp16", "context_length": 512, "draft_size": [1, 2, 24]}
    passes = pd.DataFrame(passes | {"model": "m", "time_ms": [10.0, 10.0, 12.0]})
    small = pd.DataFrame({"model": "s", "scheme": "fp16", "context_length": 512, "draft_size": [1, 24]})
    passes = pd.concat([passes, small.assign(time_ms=1.0)])
    drafting = {"model": "m", "head_scheme": "fp16", "head_vocabulary": 9, "iterations": [3], "time_ms": 2.0}
    rounds = pd.DataFrame({"head_scheme": ["fp16"], "other_ms": 0.1})
    trees = pd.DataFrame({"draft_size": 24, "iterations": 3, "parents": [" ".join(["-1", *map(str, range(23))])]})
    shapes = Shapes(TreeShapes(trees), TreeShapes(trees))
    columns = ("method", "draft_size", "iterations", "min_draft_length", "head_chance", "agreement", "tokens_per_s")
    rows = [
        ("autoregressive", 0, 0, 0, 0.0, 0.0, 95.0),
        ("eagle2", 24, 3, 0, 0.9, 0.0, 500.0),
        ("eagle2", 24, 3, 0, 0.1, 0.0, 75.0),
        ("vanilla", 0, 0, 6, 0.0, 0.9, 300.0),
        ("vanilla", 0, 0, 6, 0.0, 0.0, 61.0),
    ]
    about = {"model": "m", "scheme": "fp16", "intermediate": "s", "intermediate_scheme": "fp16", "other_ms": 0.1}
    about |= {"draft_ms": 0.0, "verify_ms": 0.9}
    replayed = pd.DataFrame(rows, columns=columns).assign(**about, head_scheme="fp16", head_vocabulary=0)
    table = replayed_against_fixed(passes, pd.DataFrame(drafting), rounds, shapes, replayed)
    picked = {(row.head, row.agreement): row.picked.split()[0] for row in table.itertuples()}
    assert picked == {
        (0.9, 0.9): "eagle2",
        (0.9, 0.0): "eagle2",
        (0.1, 0.9): "vanilla",
        (0.1, 0.0): "autoregressive",
    }
    assert (table.ratio == 1).all()
    # Every step took a millisecond: the plan with the greatest accepted length would be the best.
    lengths = table.set_index(["head", "agreement"]).expected_ratio
    assert lengths[0.1, 0.0] == pytest.approx(1 / sum(0.1**depth for depth in range(24)))
    assert lengths[0.9, 0.0] == 1


def test_free_drafts_grow_with_the_share_of_the_rate():
    some = free_drafts("llama-3-8b", ["w4a16-g128", "fp8"], 1.0, {"fp16": 0.5, "int8": 0.5, "fp8": 0.5})
    more = free_drafts("llama-3-8b", ["w4a16-g128", "fp8"], 1.0, {"fp16": 1.0, "int8": 0.5, "fp8": 0.5})
    assert more.loc["A100", "w4a16-g128"] == pytest.approx(2 * some.loc["A100", "w4a16-g128"])
    assert some.isna().loc["A100", "fp8"]
    pd.testing.assert_series_equal(some.fp8, more.fp8)


def test_shares_of_the_data_sheet():
    whats = ["read-only stream", "fp16 product (cuBLAS)", "int8 product (cuBLASLt)"]
    bandwidth, rates = shares_reached(pd.DataFrame({"what": whats, "value": [2.4, 494.7, 197.89]}), "H200")
    assert bandwidth == pytest.approx(0.5)
    assert rates == {"fp16": pytest.approx(0.5), "int8": pytest.approx(0.1), "fp8": pytest.approx(0.1)}


def test_costs_that_were_not_recorded_are_refused():
    """Not a plan whose bookkeeping takes NaN milliseconds."""
    tables = (
        read_results(f"data/recorded/h200/{name}.csv") for name in ("verify_cost", "drafting", "rounds", "replayed")
    )
    costs = RecordedCosts(*tables)
    assert costs.planner("llama-3-70b", "llama-3-8b", "w4a16-g128", "fp16").target.other_ms > 0
    with pytest.raises(SpecquantError, match="nothing was recorded with model mine, only with llama-3-70b"):
        costs.planner("mine", "llama-3-8b", "w4a16-g128", "fp16")
    with pytest.raises(SpecquantError, match="nothing was recorded with head_scheme w8a8, only with fp16"):
        costs.planner("llama-3-70b", "llama-3-8b", "w4a16-g128", "w8a8")


def test_speeds_over_chances_are_the_planner_s():
    tables = (
        read_medians(f"data/recorded/h200/{name}.csv") for name in ("verify_cost", "drafting", "rounds", "replayed")
    )
    planner = RecordedCosts(*tables).planner("llama-3-70b", "llama-3-8b", "w4a16-g128", "w4a16-g128")
    shapes = Shapes.of(read_results("data/recorded/cpu/trees.csv"))
    fitted = shapes.fitted_chances()
    table = speeds_over_chances(planner, shapes, fitted)
    row = table[(table.method == "hierarchical") & (table.agreement == 0.7)].iloc[0]
    statistics = shapes.statistics(Chances(fitted.head, fitted.inner_head, 0.7))
    assert row.tokens_per_s == planner.predict(Plan("hierarchical", 30, 3, 6), statistics)["tokens_per_s"]
    assert table[table.method == "autoregressive"].tokens_per_s.nunique() == 1
    assert table[table.method == "eagle2"].groupby("draft_size").tokens_per_s.is_monotonic_increasing.all()
