"""What verify_cost.csv says of its processes."""

import pandas as pd
import pytest

from specquant.tables.verify_cost import behind_first_context, pass_growth, pass_times, process_offsets


def test_a_process_that_takes_as_much_longer_in_each_size_shows_in_all_of_them():
    """The median over schemes: what one scheme alone does is not the process's."""
    rows = [
        {"model": "m", "scheme": scheme, "weights": "synthetic", "context_length": 512}
        | {"draft_size": size, "process": process, "time_ms": size + slower}
        for scheme, other in (("fp16", 0.0), ("w8a8", 0.0), ("w4a16-g128", 0.5))
        for size in (1, 60)
        for process, slower in ((0, 0.0), (1, 0.1), (2, other))
    ]
    told = process_offsets(pd.DataFrame(rows))
    assert told.columns.tolist() == [1, 60]
    assert told.loc["m", 1].tolist() == pytest.approx([0.1, 0.1])
    assert told.loc["m", 2].tolist() == pytest.approx([0.0, 0.0])
    assert told.index.tolist() == [("m", 1), ("m", 2)]
    pd.testing.assert_frame_equal(process_offsets(pd.DataFrame(rows[::-1])), told)  # the first by its number


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
