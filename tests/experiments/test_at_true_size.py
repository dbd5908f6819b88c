import pandas as pd
import pytest

from specquant.experiments.at_true_size import eagle2_speedups, free_drafts, shares_reached

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
