"""Spec-Bench's categories are the tasks that its paper reports."""

from specquant.benchmarks.benchmark import read_questions
from specquant.benchmarks.spec_bench import BENCHMARK


def test_spec_benchs_thirteen_categories_are_six_tasks(data_dir):
    questions, _ = read_questions(BENCHMARK, data_dir)
    tasks = [question.task for question in questions]
    assert len(set(tasks)) == 6
    assert tasks.count("multi-turn conversation") == 8
    assert {question.category for question in questions if question.task == "question answering"} == {"qa"}
    # MT-Bench's own sums are conversations; those of GSM8K are a task.
    assert {q.category: q.task for q in questions}["math"] == "multi-turn conversation"
