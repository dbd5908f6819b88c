"""What verify_cost.csv says of its processes."""

import pandas as pd
import pytest

from specquant.tables.verify_cost import behind_first_context, pass_growth, pass_times


def test_passes_are_told_by_one_protocol_and_grow_from_one_token():
    about = {"model": "m", "scheme": "fp16", "weights": "synthetic", "context_length": 512, "process": 0}
    times_ms = {("blocks", 1): 10.0, ("blocks", 2): 11.0, ("blocks", 60): 15.0, ("turns", 1): 12.0, ("turns", 60): 24.0}
    rows = pd.DataFrame([about | {"protocol": p, "draft_size": n, "time_ms": ms} for (p, n), ms in times_ms.items()])
    sizes = ["model", "scheme", "weights", "context_length"]
    assert pass_times(rows).droplevel(sizes)["median"].to_dict() == {1: 10, 2: 11, 60: 15}
    assert pass_growth(rows).droplevel(sizes)["median"].to_dict() == pytest.approx({1: 1, 2: 1.1, 60: 1.5})
    assert pass_growth(rows, "turns").droplevel(sizes)["median"].to_dict() == {1: 1, 60: 2}
    assert pass_growth(rows[rows.draft_size > 1]).empty


def test_of_several_contexts_the_shortest_is_told():
    rows = pd.DataFrame({"context_length": [8192, 512, 512], "time_ms": [3.0, 1.0, 2.0]})
    assert behind_first_context(rows).time_ms.tolist() == [1.0, 2.0]
    assert len(behind_first_context(rows.drop(columns="context_length"))) == 3
