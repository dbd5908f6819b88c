"""What verify_cost.csv says of its processes."""

import pandas as pd
import pytest

from specquant.tables.verify_cost import process_offsets


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
