import dataclasses
from contextlib import suppress

import pytest
import torch
from torch import nn

from specquant.errors import SpecquantError
from specquant.training.fit import Schedule, fit, optimizers_of

SCHEDULE = Schedule(steps=30, learning_rate=0.05, weight_decay=0.01, warmup_steps=5, evaluate_every=7)


class Interruption(Exception):
    pass


def train(checkpoint, interrupt_at=None, evaluate=None, schedule=SCHEDULE):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))
    truth = torch.tensor([1.0, -2.0, 0.5, 0.0])

    def loss_at(step):
        if step == interrupt_at:
            raise Interruption
        inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(step))
        return (module(inputs)[:, 0] - inputs @ truth).square().mean()

    def held_out_loss():
        inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(10_000))
        with torch.no_grad():
            return (module(inputs)[:, 0] - inputs @ truth).square().mean().item()

    run = fit("test", module, loss_at, evaluate or held_out_loss, schedule, 5, checkpoint, checkpoint_every=10)
    return module, run


def test_it_learns(tmp_path):
    curve = train(tmp_path / "a.pt")[1]["curve"]
    assert [point["step"] for point in curve] == [7, 14, 21, 28, 30]
    assert curve[-1]["held_out_loss"] < 0.5 * curve[0]["held_out_loss"]


@pytest.mark.parametrize("muon", [False, True])
def test_resumed_equals_uninterrupted(tmp_path, muon):
    schedule = dataclasses.replace(SCHEDULE, muon=muon)
    whole, whole_run = train(tmp_path / "whole.pt", schedule=schedule)
    with pytest.raises(Interruption):
        train(tmp_path / "parts.pt", interrupt_at=23, schedule=schedule)
    assert torch.load(tmp_path / "parts.pt", weights_only=True)["step"] == 20
    parts, parts_run = train(tmp_path / "parts.pt", schedule=schedule)
    assert parts_run["curve"] == whole_run["curve"]
    for name, weight in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], weight)


def test_muon_learns_the_matrices_between_embedding_and_head(tmp_path):
    module = nn.ModuleDict({"embed_tokens": nn.Embedding(5, 4), "hidden": nn.Linear(4, 3), "norm": nn.RMSNorm(4)})
    muon, adamw = optimizers_of(module, dataclasses.replace(SCHEDULE, muon=True))
    assert isinstance(muon, torch.optim.Muon)
    assert [p for group in muon.param_groups for p in group["params"]] == [module["hidden"].weight]
    decayed, free = adamw.param_groups
    assert decayed["params"] == [module["embed_tokens"].weight]
    assert free["params"] == [module["hidden"].bias, module["norm"].weight]
    assert (decayed["weight_decay"], free["weight_decay"]) == (SCHEDULE.weight_decay, 0)
    (adamw,) = optimizers_of(module, SCHEDULE)
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4


def test_a_finished_run_is_only_loaded(tmp_path):
    whole, whole_run = train(tmp_path / "whole.pt")
    again, again_run = train(tmp_path / "whole.pt", interrupt_at=0)
    assert again_run == whole_run
    for name, weight in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


@pytest.mark.parametrize("interrupt_at", [None, 23])
@pytest.mark.parametrize("damage", ["empty", "half", "text", "another", "lacking"])
def test_a_checkpoint_that_is_none_is_refused_in_a_sentence(tmp_path, interrupt_at, damage):
    path = tmp_path / "a.pt"
    with suppress(Interruption):
        train(path, interrupt_at)
    content, state = path.read_bytes(), torch.load(path, weights_only=True)
    if damage == "another":
        state |= {name: {"0.weight": torch.zeros(9, 4)} for name in ("module", "best")}
    elif damage == "lacking":
        del state["curve"]
    torch.save(state, path)
    if damage in ("empty", "half", "text"):
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"no checkpoint"}[damage])
    with pytest.raises(SpecquantError, match=r"a\.pt is no checkpoint of what is to be trained \(.*\): remove it"):
        train(path)


def test_the_best_held_out_weights_are_kept(tmp_path):
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0])
    module = train(tmp_path / "a.pt", evaluate=lambda: next(losses))[0]
    with pytest.raises(Interruption):
        train(tmp_path / "b.pt", interrupt_at=14, evaluate=lambda: 0.0)
    stopped = [Interruption]

    def stop_at_the_second():
        if len(stopped) == 3:
            return 9.0
        stopped.append(None)
        return 3.0 - len(stopped)

    same = train(tmp_path / "c.pt", evaluate=stop_at_the_second)[0]
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), same.parameters(), strict=True))


def test_the_schedule_warms_up_and_ends_at_zero():
    factors = [SCHEDULE.factor(step) for step in range(31)]
    assert factors[4] == factors[5] == 1
    assert factors[:5] == sorted(factors[:5])
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[30] == pytest.approx(0, abs=1e-9)
