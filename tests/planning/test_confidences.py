"""What confidence is worth: the fitted map, and what trees of any size would have gained."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from specquant.decoding.budget import Budget, ConfidenceMap, Prices
from specquant.decoding.method import ADAPTIVE, Plan
from specquant.errors import SpecquantError
from specquant.measure.adaptive import STATIC
from specquant.planning.acceptance import AcceptanceStatistics
from specquant.planning.confidences import (
    ConfidenceTrace,
    best_static,
    fit_confidence_map,
    predicted_gains,
    prices_of,
    read_confidences,
    recorded_confidence_map,
    simulate,
)
from specquant.planning.costs import LevelCosts, measured_costs
from specquant.tables.results import read_medians, read_results

# The root, a likely child with a likely child, and an unlikely one.
TREE = ConfidenceTrace(np.array([1.0, 0.8, 0.6, 0.1]), (-1, 0, 1, 0), (0, 1, 2))
STAIRS = LevelCosts(pd.Series({1: 4.0, 8: 4.1, 16: 6.0, 32: 9.0, 60: 16.0}), pd.Series({1: 0.5, 6: 3.0}))


@pytest.fixture(scope="module")
def recorded():
    return read_results("data/recorded/cpu/confidences.csv", table="confidences")


def test_a_part_of_a_tree_accepts_what_is_in_it():
    assert [TREE.accepted_length(size) for size in (1, 2, 3, 4)] == [1, 2, 3, 3]
    assert TREE.depths.tolist() == [0, 1, 2, 1]
    within = TREE.within(1)
    assert within.parents == (-1, 0, 0)
    assert within.accepted == (0, 1)
    assert TREE.within(2).parents == TREE.parents


def test_the_map_is_the_share_that_is_accepted_and_never_falls():
    def trace(confidence, accepted):
        return ConfidenceTrace(np.array([1.0, confidence]), (-1, 0), (0, 1) if accepted else (0,))

    traces = [trace(0.25, n % 4 == 0) for n in range(40)] + [trace(0.55, n % 2 == 0) for n in range(40)]
    traces += [trace(0.65, n % 4 == 0) for n in range(40)]  # less than below it: both are one
    confidence_map = fit_confidence_map([traces])
    assert np.interp([0.25, 0.55, 0.65], confidence_map.confidence, confidence_map.chance) == pytest.approx(
        [0.25, 0.375, 0.375]
    )
    with pytest.raises(SpecquantError, match="there are no trees that have drafts"):
        fit_confidence_map([[]])


def test_what_is_simulated_is_what_was_recorded():
    prices = Prices({1: 4.0, 2: 5.0, 4: 7.0}, [0.5, 1.0], 0.5)
    told = simulate([[TREE] * 10], prices, (2, 2))
    assert told == pytest.approx((2 / 6.5, 2.0, 2.0, 2.0, 1.0, 5.0))
    assert simulate([[TREE]], prices, (1, 0)).tokens_per_ms == pytest.approx(1 / 4.5)
    tree, best = best_static([[TREE] * 10], prices)
    assert tree == (4, 2)
    assert best.tokens_per_ms == pytest.approx(3 / 8.5)
    with pytest.raises(SpecquantError, match="no recorded trees to simulate with"):
        simulate([], prices)


def test_the_recorded_trees_gain_by_prices(recorded):
    """On stairs, more than any one size; where all costs nothing, as much as the largest trees; and where drafts cost
    too much, decoding one by one loses at most 3%."""
    texts = read_confidences(recorded)
    gains = predicted_gains(texts, {"stairs": STAIRS})
    assert gains.gain["stairs"] > 0.99
    confidence_map = fit_confidence_map(texts)
    free = Prices(dict.fromkeys((1, 8, 24, 60), 5.0), [0.0] * 6, confidence_map=confidence_map)
    adaptive, largest = simulate(texts, free), simulate(texts, free, (60, 6))
    assert adaptive.tokens_per_ms == pytest.approx(largest.tokens_per_ms, rel=0.01)
    dear = Prices({1: 1.0, 8: 8.0, 24: 24.0}, [20.0, 40.0], confidence_map=confidence_map)
    plain = simulate(texts, dear, (1, 0))
    assert simulate([text * 40 for text in texts], dear).tokens_per_ms > 0.965 * plain.tokens_per_ms


def test_the_recorded_map_is_used_where_it_is_there(recorded, tmp_path):
    confidence_map = recorded_confidence_map()
    assert confidence_map == fit_confidence_map(read_confidences(recorded))
    assert len(confidence_map.chance) > 8
    assert recorded_confidence_map(tmp_path / "no.csv") == ConfidenceMap()


def test_a_recorded_map_that_is_damaged_is_not_passed_over(recorded, tmp_path):
    recorded.assign(parents="-1 5").to_csv(tmp_path / "confidences.csv", index=False)
    with pytest.raises(SpecquantError, match="of recorded trees holds none in the order of confidence: record"):
        recorded_confidence_map(tmp_path / "confidences.csv")
    (tmp_path / "confidences.csv").write_text("")
    with pytest.raises(SpecquantError, match=r"confidences\.csv is empty"):
        recorded_confidence_map(tmp_path / "confidences.csv")


def test_trees_of_several_models_are_no_text_of_one(recorded):
    both = pd.concat([recorded, recorded.assign(model="other target")])
    with pytest.raises(SpecquantError, match=r"all\.csv holds trees of other target and tiny target: keep the rows"):
        read_confidences(both, where="all.csv")


def test_prices_come_from_measured_costs():
    prices = prices_of(STAIRS, ConfidenceMap())
    assert prices.verify_ms == {1: 4.0, 8: 4.1, 16: 6.0, 24: 7.5, 32: 9.0, 48: 13.0, 60: 16.0}
    assert prices.draft_ms == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    with pytest.raises(SpecquantError, match="none was measured of this model's head"):
        prices_of(LevelCosts(STAIRS.verify_ms, pd.Series(dtype=float)), ConfidenceMap())


@pytest.mark.parametrize(
    "damage",
    [
        {"confidence": "1 0.5 x"},
        {"parents": "-1 1 0"},
        {"parents": "-1 0"},
        {"accepted_nodes": "0 7"},
        {"confidence": "1 1.5 0.1"},
        {"accepted_nodes": "1"},
        {"accepted_nodes": "0 1 1"},
        {"accepted_nodes": "0 1 2"},
        {"accepted_nodes": "0 -1"},
        {"confidence": "1 0.1 0.5"},
        {"confidence": "1 nan 0.1"},
    ],
)
def test_a_row_that_is_no_tree(damage):
    row = {"model": "tiny target", "id": "a", "confidence": "1 0.5 0.1", "parents": "-1 0 0", "accepted_nodes": "0 1"}
    assert len(read_confidences(pd.DataFrame([row]))[0]) == 1
    with pytest.raises(SpecquantError, match="line 2 of recorded trees holds none in the order of confidence"):
        read_confidences(pd.DataFrame([row | damage]))


@pytest.mark.parametrize("dearer", [1, 5, 20])
@pytest.mark.parametrize("kept", [0.0, 0.3])
def test_adaptive_trees_lose_little_to_decoding_one_by_one_whatever_confidence_says(recorded, dearer, kept):
    """Of the drafts of 70B in W4A16 on an H200, and of some that cost more, at most a share is accepted of what was
    recorded, so that the confidence map is wrong."""
    costs = measured_costs(
        *(read_medians(f"data/recorded/h200/{name}.csv") for name in ("verify_cost", "drafting")),
        *("llama-3-70b", "w4a16-g128", "w4a16-g128"),
    )
    texts, draw = read_confidences(recorded), np.random.default_rng(0)
    prices = prices_of(costs, fit_confidence_map(texts))
    one_ms = prices.verify_ms[1]
    verify_ms = {size: one_ms + dearer * (time_ms - one_ms) for size, time_ms in prices.verify_ms.items()}
    prices = replace(prices, verify_ms=verify_ms, draft_ms=[dearer * time_ms for time_ms in prices.draft_ms])

    def misled(trace):
        path = trace.accepted[: draw.geometric(1 - kept)]
        return ConfidenceTrace(trace.confidence, trace.parents, path)

    misled_texts = [[misled(trace) for trace in text] for text in texts] * 6
    plain = simulate(misled_texts, prices, (1, 0)).tokens_per_ms
    assert simulate(misled_texts, prices).tokens_per_ms > 0.97 * plain


@pytest.fixture(scope="module")
def gains(recorded):
    """Adaptive over the best of the static sizes that are measured: for two models and three schemes on an H200, each
    half of the recorded texts judged with what the other half says of confidence."""
    costs = [read_medians(f"data/recorded/h200/{name}.csv") for name in ("verify_cost", "drafting")]
    texts = read_confidences(recorded)
    halves = [(fit_confidence_map(texts[n::2]), texts[1 - n :: 2]) for n in (0, 1)]
    rows = {}
    for model, scheme in product(("llama-3-8b", "llama-3-70b"), ("w4a16-g128", "w8a8", "w4a8-qqq")):
        for half, (confidence_map, judged) in enumerate(halves):
            prices = prices_of(measured_costs(*costs, model, scheme), confidence_map)
            best = max(simulate(judged, prices, tree).tokens_per_ms for tree in STATIC)
            rows[model, scheme, half] = simulate(judged * 6, prices).tokens_per_ms / best
    return pd.Series(rows)


def test_adaptive_trees_are_about_as_fast_as_the_best_static_size(gains):
    """Which is known only afterwards."""
    assert gains.min() > 0.97
    assert (gains > 0.99).sum() >= 9
    assert gains.mean() > 1.01


def test_what_is_accepted_again_is_drafted_again():
    prices = Prices({1: 10.0, 3: 10.5}, [1.0, 2.0])
    wrong = ConfidenceTrace(TREE.confidence, TREE.parents, (0,))
    budget = Budget(prices, 10)
    sizes = []
    for trace in [wrong] * 200 + [TREE] * 400:
        size, iterations = budget.begin(2)
        budget.choose()
        accepted = trace.within(iterations).accepted_length(size) - 1
        budget.learn(accepted, *((trace.confidence, trace.depths) if budget.looks else ()))
        sizes.append(size)
    assert np.mean(np.array(sizes[100:200]) > 1) < 0.1
    assert np.mean(np.array(sizes[-100:]) > 1) > 0.9


def test_the_planner_predicts_by_the_policy_of_decoding(recorded):
    texts = read_confidences(recorded)
    told = AcceptanceStatistics({}, {}, [0.5], texts).adaptive(Plan("eagle2", ADAPTIVE, 6), STAIRS)
    simulated = simulate(texts, prices_of(STAIRS, fit_confidence_map(texts)))
    assert told.draft_ms == pytest.approx(simulated.draft_ms)
    assert told.accepted_length == pytest.approx(simulated.accepted_length)
