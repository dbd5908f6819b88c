"""Measuring in this process: a fresh interpreter for each would take seconds. `test_measure` starts real ones."""

import json

import pytest

from specquant.measure import executors, measure
from tests.questions import write_questions


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Small files of the benchmarks."""
    return write_questions(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture
def in_process(monkeypatch):
    """Gives the list of units that were ordered, as fresh processes would be asked for them."""
    ordered = []

    def run(executor, tasks, folder):
        for task in tasks:
            told, order = [], json.loads(task.order)
            ordered.extend(order["units"])
            measure.serve(order, told.append)
            yield from ((task, each) for each in told)
            yield task, {"ended": 0, "log": None}

    monkeypatch.setattr(executors.Here, "run", run)
    return ordered
