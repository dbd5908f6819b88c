"""Measuring in this process: a fresh interpreter for each would take seconds. `test_measure` starts real ones."""

import json
from dataclasses import asdict

import pytest

from specquant.measure import measure


@pytest.fixture
def in_process(monkeypatch):
    """Gives the list of units that were ordered, as `measure._fresh_process` would be asked for them."""
    ordered = []

    def fresh(question, parameters, units, parts):
        order = {"measure": question.run.__module__, "parameters": asdict(parameters), "units": units}
        order |= {"path": str(parts.path), "same": parts.same}
        told = []
        ordered.extend(units)
        measure.serve(json.loads(json.dumps(order, default=str)), told.append)
        return iter(told)

    monkeypatch.setattr(measure, "_fresh_process", fresh)
    return ordered
