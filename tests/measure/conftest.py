"""Measuring in this process: a fresh interpreter for each would take seconds. `test_measure` starts real ones."""

import json
from pathlib import Path

import pytest

from specquant.measure import executors, measure
from specquant.tables.schemas import TABLES
from tests.questions import write_questions


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Small files of the benchmarks."""
    return write_questions(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture
def in_process(monkeypatch):
    """Gives the list of units that were ordered, as fresh processes would be asked for them.

    It also checks that a table has every column of its schema, empty where there is nothing to tell. A column that a
    table lacks tells `specquant record` that the table is from before that column.
    """
    ordered = []

    def run(executor, tasks, folder):
        for task in tasks:
            told, order = [], json.loads(task.order)
            ordered.extend(order["units"])
            measure.serve(order, told.append)
            yield from ((task, each) for each in told)
            for path in map(Path, order["paths"]):
                told = columns_of_parts(path)
                assert not told or path.stem not in TABLES or told >= set(TABLES[path.stem].schema.columns)
            yield task, {"ended": 0, "log": None}

    monkeypatch.setattr(executors.Here, "run", run)
    return ordered


def columns_of_parts(path):
    parts = [json.loads(part.read_text()) for part in path.with_suffix(".parts").glob("*.json")]
    return {name for part in parts for row in part["rows"] for name in row}
