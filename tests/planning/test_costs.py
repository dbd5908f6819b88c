import pandas as pd
import pytest

from specquant.errors import SpecquantError
from specquant.planning.costs import measured_costs


def test_costs_come_from_the_tables():
    passes = {"model": "m", "scheme": "fp16", "context_length": 512, "draft_size": [8, 1], "time_ms": [3.0, 2.0]}
    drafts = {"model": "m", "head_scheme": "fp16", "head_vocabulary": [100, 100, 100, 10], "iterations": [3, 3, 6, 3]}
    drafts["time_ms"] = [1.0, 1.2, 2.2, 0.5]
    tables = pd.DataFrame(passes), pd.DataFrame(drafts)
    costs = measured_costs(*tables, "m", "fp16", other_ms=0.3)
    assert (costs.verify(1), costs.verify(4.5), costs.other_ms) == (2.0, 2.5, 0.3)
    assert (costs.draft(3), costs.draft(6)) == (pytest.approx(1.1), pytest.approx(2.2))
    assert measured_costs(*tables, "m", "fp16", head_vocabulary=10).draft(6) == pytest.approx(1.0)
    with pytest.raises(SpecquantError, match="no pass of 'm' in w8a8 behind 512 tokens was measured, only in fp16: ch"):
        measured_costs(*tables, "m", "w8a8")
    with pytest.raises(
        SpecquantError, match="no pass of 'n' in fp16 behind 512 tokens was measured, only of m: choose"
    ):
        measured_costs(*tables, "n", "fp16")
    with pytest.raises(SpecquantError, match=r"no draft of such a head was measured: .* \(specquant bench drafting\)"):
        measured_costs(*tables, "m", "fp16", "w8a8").draft(3)
