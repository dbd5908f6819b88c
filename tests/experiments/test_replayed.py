"""Rows of replayed.csv are compared with decoding one by one in the same setting."""

import pandas as pd
import pytest

from specquant.decoding.method import PLAN_FIELDS
from specquant.experiments.replayed import at_fitted_chances
from specquant.planning.acceptance import Shapes, TreeShapes


def test_each_plan_is_compared_at_its_first_chances_with_the_same_head():
    columns = ["head_scheme", *PLAN_FIELDS, "head_chance", "accepted_length", "verify_ms"]
    rows = [
        ("fp16", "autoregressive", 0, 0, 0, 0.0, 1.0, 10.0),
        ("fp16", "eagle2", 3, 2, 0, 0.5, 2.0, 10.0),
        ("w4a16-g128", "autoregressive", 0, 0, 0, 0.0, 1.0, 20.0),
        ("w4a16-g128", "eagle2", 3, 2, 0, 0.5, 1.5, 25.0),
        ("w4a16-g128", "eagle2", 3, 2, 0, 1.0, 3.0, 25.0),  # swept
    ]
    table = pd.DataFrame(rows, columns=columns)
    table = table.assign(model="m", scheme="s", head_vocabulary=0, agreement=0.0, draft_ms=0.0, other_ms=0.0)
    chain = pd.DataFrame({"draft_size": [3], "iterations": [2], "parents": ["-1 0 1"], "accepted_length": [2.0]})
    fitted = at_fitted_chances(table, Shapes(TreeShapes(chain), TreeShapes(chain)))
    assert fitted.speedup.tolist() == pytest.approx([1.0, 2.0, 1.0, 1.2])
    assert fitted.expected_length.tolist() == pytest.approx([1.0, 1.75, 1.0, 1.75])
    assert fitted.expected_speedup.tolist() == pytest.approx([1.0, 1.75, 1.0, 1.4])
