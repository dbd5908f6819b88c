"""Questions are answered turn by turn, and the table's arithmetic is Spec-Bench's, with intervals that are right."""

import math

import numpy as np
import pandas as pd
import pytest

from specquant.benchmarks.benchmark import read_questions
from specquant.benchmarks.registry import BENCHMARKS
from specquant.benchmarks.sandbox import wall
from specquant.decoding import generate
from specquant.decoding.models import tiny_models
from specquant.errors import SpecquantError
from specquant.measure.asking import Asker, longest_prompt
from specquant.measure.tasks import answer_question, benchmark_table, paper_form


@pytest.fixture(scope="module")
def models(small_models):
    return tiny_models(small_models)


def answered(models, tokenizer, data_dir, name, method="eagle2", max_new_tokens=8, longest=100):
    benchmark = BENCHMARKS[name]
    question = read_questions(benchmark, data_dir)[0][0]
    asker = Asker(models.speculator(method), tokenizer, benchmark, max_new_tokens, longest)
    return answer_question(asker, question)


def test_a_conversation_is_measured_over_both_turns(models, tokenizer, data_dir):
    row = answered(models, tokenizer, data_dir, "mt-bench")
    first = generate(models.speculator("eagle2"), tokenizer, "2 plus 3 makes\n\n", 8)
    asked = f"2 plus 3 makes\n\n{first.text.strip()}\n\nAnd 4 plus\n\n"
    second = generate(models.speculator("eagle2"), tokenizer, asked, 8)
    assert row["answers"] == [first.text, second.text]
    assert row["stopped_by"] == [first.stopped_by, second.stopped_by]
    assert row["new_tokens"] == len(first.token_ids) + len(second.token_ids)
    assert row["steps"] == len(first.steps) + len(second.steps)
    assert row["decoded_tokens"] == row["new_tokens"] - 2 == pytest.approx(row["accepted_length"] * row["steps"])
    assert row["tokens_per_s"] == pytest.approx(1e3 * row["decoded_tokens"] / row["decode_ms"])
    assert (row["task"], row["id"], row["cut_tokens"], row["correct"]) == ("MT-Bench", "81", 0, None)


def test_what_was_cut_and_whether_the_answer_is_right_is_said(models, tokenizer, data_dir):
    row = answered(models, tokenizer, data_dir, "gsm8k", longest=100)
    assert row["cut_tokens"] > 0
    assert row["correct"] is False
    assert answered(models, tokenizer, data_dir, "humaneval", longest=100)["correct"] is (False if wall() else None)


def test_methods_give_the_same_answers(models, tokenizer, data_dir):
    rows = [answered(models, tokenizer, data_dir, "mt-bench", method) for method in ("autoregressive", "hierarchical")]
    assert rows[0]["answers"] == rows[1]["answers"]
    assert rows[0]["steps"] == rows[0]["decoded_tokens"]


def test_room_for_the_prompt_is_that_of_the_shortest_context(models):
    speculators = [models.speculator(method) for method in ("autoregressive", "eagle2")]
    assert longest_prompt(speculators, 28) == min(speculator.context_length for speculator in speculators) - 28 == 100
    for wrong in (0, -1, 113, 1024):
        with pytest.raises(SpecquantError, match=rf"{wrong} new tokens leave no room .* of 128: choose from 1 to 112"):
            longest_prompt(speculators, wrong)


def made_by_hand() -> pd.DataFrame:
    """Two questions of a task and one of another, by two methods; the last answer had no step."""
    columns = ("task", "id", "method", "decoded_tokens", "steps", "tokens_per_s", "correct")
    rows = [
        ("sums", "1", "autoregressive", 10, 10, 100.0, True),
        ("sums", "1", "eagle2", 10, 5, 250.0, True),
        ("sums", "2", "autoregressive", 30, 30, 50.0, False),
        ("sums", "2", "eagle2", 30, 5, 150.0, False),
        ("talk", "3", "autoregressive", 20, 20, 40.0, None),
        ("talk", "3", "eagle2", 0, 0, math.nan, None),
    ]
    common = {"model": "tiny", "scheme": "fp16", "weights": "trained", "acceptance": "measured"}
    common |= {"new_tokens": 31, "cut_tokens": 2}
    return pd.DataFrame([common | dict(zip(columns, row, strict=True)) for row in rows])


def test_the_tables_arithmetic():
    table = benchmark_table(made_by_hand()).set_index(["task", "method"])
    sums = table.loc[("sums", "eagle2")]
    assert (sums.questions, sums.new_tokens, sums.cut_tokens) == (2, 62, 4)
    assert sums.accepted_length == 40 / 10  # over steps: not the mean of 2 and 6 over questions, which is 4 by chance
    assert sums.tokens_per_s == (250 + 150) / 2
    assert sums.speedup == pytest.approx(200 / 75)  # of the means, not the mean of 2.5 and 3
    assert sums.correct_percent == 50
    assert table.loc[("sums", "autoregressive")].speedup == 1
    overall = table.loc[("overall", "autoregressive")]
    assert overall.tokens_per_s == pytest.approx((100 + 50 + 40) / 3)
    assert overall.correct_percent == 50
    # The question without speed counts on neither side.
    assert table.loc[("overall", "eagle2")].speedup == pytest.approx(200 / 75)
    talk = table.loc[("talk", "eagle2")]
    assert talk[["accepted_length", "tokens_per_s", "speedup", "correct_percent", "speedup_low"]].isna().all()


def test_accepted_lengths_are_over_steps_not_questions():
    rows = made_by_hand()
    rows.loc[1, "steps"] = 10
    assert benchmark_table(rows).set_index(["task", "method"]).accepted_length["sums", "eagle2"] == 40 / 15


def test_one_task_has_no_overall_and_without_autoregressive_there_is_no_speedup():
    rows = made_by_hand()
    table = benchmark_table(rows[(rows.task == "sums") & (rows.method == "eagle2")])
    assert list(table.task) == ["sums"]
    assert table.speedup.isna().all()
    assert "speedup" not in paper_form(table).columns


def test_schemes_are_compared_with_themselves():
    fast = made_by_hand().assign(scheme="w4a16-g128", tokens_per_s=lambda rows: 2 * rows.tokens_per_s)
    table = benchmark_table(pd.concat([made_by_hand(), fast])).set_index(["scheme", "task", "method"])
    assert table.speedup["w4a16-g128", "sums", "eagle2"] == pytest.approx(200 / 75)


def many(speeds: np.ndarray, plain: np.ndarray) -> pd.DataFrame:
    common = {"model": "m", "scheme": "fp16", "task": "t", "weights": "trained", "acceptance": "measured"}
    common |= {"new_tokens": 1, "cut_tokens": 0, "decoded_tokens": 2, "steps": 1, "correct": None}
    return pd.DataFrame(
        common | {"method": method, "id": str(i), "tokens_per_s": speed}
        for method, values in (("autoregressive", plain), ("eagle2", speeds))
        for i, speed in enumerate(values)
    )


def test_intervals_are_those_of_the_normal_approximation_and_the_same_every_time():
    speeds = np.random.default_rng(1).normal(100, 10, 400)
    rows = many(speeds, np.full(400, 50.0))
    row = benchmark_table(rows).iloc[1]
    error = 1.96 * speeds.std() / 20
    assert row.tokens_per_s_low == pytest.approx(speeds.mean() - error, abs=0.15)
    assert row.tokens_per_s_high == pytest.approx(speeds.mean() + error, abs=0.15)
    assert row.speedup_low == pytest.approx(row.tokens_per_s_low / 50)
    pd.testing.assert_frame_equal(benchmark_table(rows), benchmark_table(rows))


def test_both_sides_of_a_speedup_are_drawn_together():
    """Questions differ much, but each is exactly twice as fast: the speedup is certain, and the speed is not."""
    plain = np.random.default_rng(2).uniform(10, 100, 50)
    row = benchmark_table(many(2 * plain, plain).sample(frac=1, random_state=0)).set_index("method").loc["eagle2"]
    assert row.speedup == row.speedup_low == row.speedup_high == pytest.approx(2)
    assert row.tokens_per_s_high - row.tokens_per_s_low > 5


def test_people_read_each_figure_with_its_interval():
    table = paper_form(benchmark_table(made_by_hand()))
    assert list(table.columns[:4]) == ["scheme", "task", "method", "questions"]
    cell = table[(table.task == "sums") & (table.method == "eagle2")]["accepted length"].item()
    assert cell == "4.00 [2.00, 6.00]"
    assert "-" in set(table["correct percent"])
    # Prompts that were cut are not passed over in silence.
    assert list(table["cut from prompts"]) == [4, 4, 2, 2, 6, 6]
    assert "cut from prompts" not in paper_form(benchmark_table(made_by_hand().assign(cut_tokens=0))).columns
