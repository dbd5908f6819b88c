"""Steps for a time: measured once, kept, and the weights stay."""

import json
import time

import pytest
import torch
from torch import nn

from specquant.errors import SpecquantError
from specquant.training.fit import Schedule
from specquant.training.timed import EVALUATIONS, fitting

SCHEDULE = Schedule(steps=1, learning_rate=0.1, weight_decay=0.0)


@pytest.fixture
def learner():
    module = nn.Linear(2, 1)
    steps = []

    def loss_at(step):
        steps.append(step)
        time.sleep(0.01)
        return module(torch.ones(2)).sum()

    return module, loss_at, steps


def test_as_many_steps_as_fit(learner, tmp_path):
    module, loss_at, _ = learner
    before = module.weight.clone()
    schedule = fitting(SCHEDULE, 2.0, module, loss_at, tmp_path / "a.json")
    assert 20 <= schedule.steps <= 200  # of 10 ms or, on a busy machine, more
    assert schedule.warmup_steps <= max(1, schedule.steps // 10)
    assert schedule.evaluate_every * EVALUATIONS >= schedule.steps
    assert torch.equal(module.weight, before)
    assert module.weight.grad is None


def test_the_number_is_kept_for_a_later_call(learner, tmp_path):
    module, loss_at, steps = learner
    (tmp_path / "a.json").write_text(json.dumps({"steps": 77}))
    assert fitting(SCHEDULE, 1.0, module, loss_at, tmp_path / "a.json").steps == 77
    assert steps == []


def test_no_time_is_one_step(learner, tmp_path):
    module, loss_at, _ = learner
    assert fitting(SCHEDULE, 0.0, module, loss_at, tmp_path / "a.json").steps == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"steps": 0}', '{"steps": "7"}', "[" * 5000])
def test_a_number_that_is_damaged_is_refused(learner, tmp_path, content):
    module, loss_at, _ = learner
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SpecquantError, match=r"a\.json does not say how many steps were begun: remove it and a\.pt"):
        fitting(SCHEDULE, 1.0, module, loss_at, tmp_path / "a.json")
