"""The rules of averaging, by hand, and that each form is what it is called."""

import numpy as np
import pandas as pd
import pytest

from specquant.tables.speed import over_equal_texts, over_questions, speed, speedups, whole_step_ms

# 10 tokens in 100 ms and 30 in 100 ms.
QUESTIONS = pd.DataFrame({"tokens": [10, 30], "ms": [100.0, 100.0]})


def test_a_speed_is_a_ratio_of_sums():
    assert speed(QUESTIONS.tokens.sum(), QUESTIONS.ms.sum()) == 200.0
    assert speed(QUESTIONS.tokens, QUESTIONS.ms).tolist() == [100.0, 300.0]


def test_a_whole_step_is_its_draft_its_pass_and_the_rest():
    steps = pd.DataFrame({"draft_ms": [3.0, 0.0], "verify_ms": [16.0, 10.0], "other_ms": [0.5, 0.25]})
    assert whole_step_ms(steps).tolist() == [19.5, 10.25]


def test_the_papers_form_is_the_mean_of_the_questions_speeds():
    speeds = np.array([[100.0, 300.0], [100.0, np.nan]])
    assert over_questions(speeds).tolist() == [200.0, 100.0]


def test_as_much_text_of_each_takes_as_long_as_its_parts():
    """300 tokens of each: 3 s and 1 s."""
    table = pd.DataFrame({"method": "eagle2", "task": ["a", "b"], "tokens_per_s": [100.0, 300.0]})
    assert over_equal_texts(table, ["method"], "tokens_per_s")["eagle2"] == pytest.approx(600 / 4)
    table.loc[1, "tokens_per_s"] = np.nan
    assert over_equal_texts(table, ["method"], "tokens_per_s").isna().all()


def test_a_speedup_compares_within_what_else_the_index_says():
    index = pd.MultiIndex.from_tuples(
        [
            ("fp16", "autoregressive"),
            ("fp16", "eagle2"),
            ("fp16", "eagle2"),
            ("w8a8", "autoregressive"),
            ("fp8", "eagle2"),
        ],
        names=["scheme", "method"],
    )
    gained = speedups(pd.Series([50.0, 100.0, 25.0, 80.0, 90.0], index))
    assert gained.tolist()[:4] == [1.0, 2.0, 0.5, 1.0]
    assert np.isnan(gained.iloc[4])  # decoding one by one was not measured in fp8
    over_eagle2 = speedups(pd.Series([50.0, 100.0], index[:2]), "eagle2")
    assert over_eagle2.tolist() == [0.5, 1.0]
