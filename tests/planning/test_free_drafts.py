import pandas as pd
import pytest

from specquant.planning.free_drafts import (
    draw_free_drafts,
    free_drafts,
    largest_free_measured,
    least_growths,
    shares_reached,
)
from specquant.tables.results import read_medians, read_results


def test_a_draft_is_free_up_to_the_first_slower_pass():
    times = pd.DataFrame([[10.0, 10.5, 12.0, 10.5], [10.0, 9.0, 11.0, 11.0]], columns=[1, 8, 16, 32])
    assert largest_free_measured(times).tolist() == [8, 32]


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


def test_cards_are_rows():
    table = pd.DataFrame({"fp16": [200.0, 100.0], "fp8": [300.0, None]}, index=["B200", "A100"])
    (axis,) = draw_free_drafts(table).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["B200", "A100"]
    assert list(axis.lines[0].get_xdata()) == [200.0, 100.0]


def test_a_roofline_s_growth_is_flat_and_then_in_proportion_to_the_draft():
    passes = read_results("data/recorded/h200/verify_cost.csv")
    ceilings = read_medians("data/recorded/h200/ceilings.csv")
    told = least_growths(passes, ["fp16", "w4a16-g128", "nowhere"], ceilings, "H200")
    assert set(told) == {(model, scheme) for model in passes.model.unique() for scheme in ("fp16", "w4a16-g128")}
    line = told["llama-3-70b", "w4a16-g128"]
    assert line[1] == line[32] == 1
    assert line[64] > line[60] > 1.3
    assert (told["llama-3-70b", "fp16"] == 1).all()
    assert least_growths(passes, ["fp16"], ceilings, "a card of tomorrow") == {}
