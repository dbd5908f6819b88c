"""Rows of replayed.csv are compared with decoding one by one in the same setting."""

import pandas as pd
import pytest

from specquant.experiments.replayed import PLAN_COLUMNS, at_fitted_chances


def test_each_plan_is_compared_at_its_first_chances_with_the_same_head():
    columns = ["head_scheme", *PLAN_COLUMNS, "tokens_per_s"]
    rows = [
        ("fp16", "autoregressive", 0, 0, 0, 50.0),
        ("fp16", "eagle2", 24, 3, 0, 100.0),
        ("w4a16-g128", "autoregressive", 0, 0, 0, 80.0),
        ("w4a16-g128", "eagle2", 24, 3, 0, 120.0),
        ("w4a16-g128", "eagle2", 60, 6, 0, 40.0),
        ("w4a16-g128", "eagle2", 24, 3, 0, 70.0),  # swept
    ]
    table = pd.DataFrame(rows, columns=columns).assign(model="m", scheme="s", head_vocabulary=0)
    fitted = at_fitted_chances(table)
    assert fitted.speedup.tolist() == pytest.approx([1.0, 2.0, 1.0, 1.5, 0.5])
