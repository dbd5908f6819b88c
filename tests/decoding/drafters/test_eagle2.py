"""An EAGLE-2 draft as a CUDA graph: without a GPU, through the stand-in for capturing."""

import numpy as np
import pytest
import torch

from specquant.decoding import EagleDrafter, Greedy, Speculator
from specquant.decoding.budget import Budget, ConfidenceMap, Drafted, Prices
from specquant.decoding.drafters import eagle2
from specquant.models import graphs
from specquant.models.llama import set_compute_dtype
from tests.decoding.conftest import decode, random_head, random_model

PROMPT = [3, 14, 15, 9, 26, 5]


def pair(device="cpu", dtype=torch.float64):
    torch.manual_seed(0)  # for the head's bias
    model = random_model()
    head = set_compute_dtype(random_head(model), dtype).to(device)
    return set_compute_dtype(model, dtype).to(device), head


def steps(model, head, limits=(12,) * 8, **settings):
    """What a few EAGLE-2 steps verified and added, and the speculator."""
    speculator = Speculator(model, EagleDrafter(head, **(dict(draft_size=12, iterations=3, top_k=4) | settings)))
    speculator.prefill(PROMPT, Greedy())
    taken = [speculator.step(limit) for limit in limits]
    return speculator, taken


def looking():
    """A budget that drafts as `steps` does, and looks at each draft."""
    known = ConfidenceMap(trees=(Drafted(np.ones(12), np.arange(12), np.ones(12)),))
    budget = Budget(Prices({1: 5.0, 12: 5.0}, [0.0] * 3, confidence_map=known), 4)
    budget._spare_ms = float("inf")
    return budget


def trees(taken):
    """Read only now: what a step keeps must outlive the following drafts."""
    return [
        (
            step.tree.tokens.tolist(),
            step.tree.parents.tolist(),
            step.tree.depths.tolist(),
            step.tree.ancestors.tolist(),
            step.tokens,
        )
        for step in taken
    ]


def test_a_head_that_overflows_drafts_a_tree_all_the_same(monkeypatch):
    """The kernel ranks by comparing, and a NaN compares with nothing: all would be kept, beyond the room for them."""
    ranked = []

    def rerank(proposals, size):
        ranked.append(proposals.scores.clone())
        return eagle2_rerank(proposals, size)

    eagle2_rerank = eagle2.rerank
    monkeypatch.setattr(eagle2, "rerank", rerank)
    model, head = pair()
    head.fc.weight.fill_(torch.nan)
    _, taken = steps(model, head)
    assert not any(scores.isnan().any() for scores in ranked)
    assert [len(step.tree) for step in taken] == [12] * 8
    assert [token for step in taken for token in step.tokens][:8] == decode(Speculator(model), PROMPT, 9)[1:]


@pytest.fixture
def as_graphs(captured, monkeypatch):
    monkeypatch.setattr(graphs, "capturable", lambda model: True)
    return captured


@pytest.mark.bits
def test_a_captured_draft_is_the_draft(as_graphs, monkeypatch):
    """Whatever came before, and also where the limit ends a draft early."""
    limits = (12, 12, 12, 3, 12, 2, 12, 12)
    speculator, taken = steps(*pair(), limits)
    captured = set(speculator.drafter._graphs)
    assert len(as_graphs) == len(captured) < len(taken)
    assert {iterations for _, iterations, _ in captured} == {1, 2, 3}
    assert len({rows for rows, *_ in captured}) > 1
    monkeypatch.setattr(graphs, "capturable", lambda model: False)
    plain, expected = steps(*pair(), limits)
    assert trees(taken) == trees(expected)
    rows = plain.drafter.cache.length
    assert speculator.drafter.cache.length == rows
    assert torch.equal(speculator.drafter.cache.keys[:, :, :rows], plain.drafter.cache.keys[:, :, :rows])


def test_one_graph_serves_every_prompt(as_graphs):
    speculator, _ = steps(*pair())
    made = len(as_graphs)
    again = [steps_of(speculator) for _ in range(2)]
    assert again[0] == again[1]
    assert len(as_graphs) == made


def steps_of(speculator):
    speculator.prefill(PROMPT, Greedy())
    return trees([speculator.step(12) for _ in range(8)])


def test_the_hierarchy_drafts_by_graphs(as_graphs, target, intermediate, head, monkeypatch):
    def decode():
        inner = Speculator(intermediate, EagleDrafter(head, 12, 3, 4), min_draft_length=5)
        speculator = Speculator(target, inner)
        tokens = list(speculator.prefill(PROMPT, Greedy()).tokens)
        while len(tokens) < 40:
            tokens += speculator.step(40 - len(tokens)).tokens
        return tokens

    tokens = decode()
    assert as_graphs
    monkeypatch.setattr(graphs, "capturable", lambda model: False)
    assert decode() == tokens


@pytest.mark.gpu
def test_on_a_gpu_graphs_and_launches_give_the_same_trees(monkeypatch):
    with_graphs, taken = steps(*pair("cuda", torch.float16))
    assert with_graphs.drafter._graphs
    monkeypatch.setattr(graphs, "capturable", lambda model: False)
    without, expected = steps(*pair("cuda", torch.float16))
    assert without.drafter._graphs is None
    assert trees(taken) == trees(expected)


def test_a_budget_learns_of_the_drafts_of_a_static_plan(as_graphs):
    budget = looking()
    chosen, taken = steps(*pair(), budget=budget)
    static, expected = steps(*pair())
    assert trees(taken) == trees(expected)
    assert set(chosen.drafter._graphs) == set(static.drafter._graphs)
    budget.choose()  # with what the last step told
    assert budget._trees == 1 + len(taken)


@pytest.mark.gpu
def test_on_a_gpu_a_budget_is_told_the_confidence_of_each_draft():
    """Which is copied to the host while the GPU goes on."""
    budget, told = looking(), []
    learn = budget.learn
    budget.learn = lambda *said: (told.append(said), learn(*said))
    speculator, taken = steps(*pair("cuda", torch.float16), budget=budget)
    assert speculator.drafter._graphs
    budget.choose()  # with what the last step told
    assert budget._trees == 1 + len(taken)
    for step, (accepted, confidence, depths) in zip(taken, told[1:], strict=True):  # the first is the prompt's
        order = step.tree.scores.sort(descending=True, stable=True).indices
        assert accepted == len(step.path)
        assert confidence == pytest.approx(step.tree.scores[order].exp().cpu().numpy())
        assert depths.tolist() == step.tree.depths[order].tolist()
    _, static = steps(*pair("cuda", torch.float16))
    assert trees(taken) == trees(static)


@pytest.mark.gpu
@pytest.mark.parametrize("budgeted", [False, True])
def test_a_step_waits_for_the_gpu_once(budgeted, monkeypatch):
    """Once everything is captured, whatever waits but the rule's reading raises; confidence that a budget looks at is
    there without."""
    speculator, taken = steps(*pair("cuda", torch.float16), budget=looking() if budgeted else None)
    speculator.prefill(PROMPT, Greedy())
    rule = speculator.rule

    class Reading:
        def judge(self, tree, logits):
            verdict = rule.judge(tree, logits)

            def read():
                torch.cuda.set_sync_debug_mode("default")
                try:
                    return verdict.read()
                finally:
                    torch.cuda.set_sync_debug_mode("error")

            return verdict._replace(read=read)

    monkeypatch.setattr(speculator, "rule", Reading())
    try:
        torch.cuda.set_sync_debug_mode("error")
        assert [speculator.step(12).tokens for _ in taken] == [step.tokens for step in taken]
    finally:
        torch.cuda.set_sync_debug_mode("default")
