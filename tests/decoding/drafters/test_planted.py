"""Planted drafts: verification finds what was planted, and every text is the one of decoding one by one."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import binom

from specquant.decoding import EagleDrafter, Greedy, Speculator
from specquant.decoding.drafters.planted import Errors, PlantedDrafts, PlantedModel, PlantedTree, judged_and_accepted
from specquant.errors import SpecquantError
from tests.decoding.conftest import random_head, random_model

VOCABULARY = 37
SHAPES = [[-1, 0, 0, 1, 1, 3, 2], [-1, 0, 1, 2, 0, 0, 0]]
SEQUENCE = [list(range(-1, 6))]
PROMPT, NEW_TOKENS, REACH = [1, 2, 3], 40, 12
LEVELS = ("sequence", "eagle2", "vanilla", "hierarchical")


def drafter(level, rate, inner_rate=0.2, seed=0):
    """A planted drafter for a model of `random_model`, of which each level has heads and small models of its own."""
    errors = Errors(rate, VOCABULARY, seed)
    if level == "sequence":
        return PlantedDrafts(SEQUENCE, errors, 96, "cpu")
    small, inner = random_model(seed=5), None
    if level == "eagle2":
        return PlantedDrafts(SHAPES, errors, 96, "cpu", EagleDrafter(random_head(random_model()), 7, 3, 3))
    if level == "hierarchical":
        head = EagleDrafter(random_head(small), 7, 3, 3)
        inner = PlantedDrafts(SHAPES, Errors(inner_rate, VOCABULARY, seed + 1), 96, "cpu", head)
    return PlantedModel(Speculator(small, inner, 4), errors)


def one_by_one(prompt=PROMPT):
    return list(known(tuple(prompt)))


@cache
def known(prompt):
    decoder = Speculator(random_model())  # the target
    tokens = decoder.prefill(list(prompt), Greedy()).tokens
    while len(tokens) < NEW_TOKENS + REACH:
        tokens = tokens + decoder.step(NEW_TOKENS).tokens
    return tokens


def steps(decoder, text, prompt=PROMPT):
    """Decode what is known already; gives the steps and the new tokens."""
    decoder.drafter.follow(prompt + text)
    tokens, taken = decoder.prefill(prompt, Greedy()).tokens, []
    while len(tokens) < NEW_TOKENS:
        taken.append(decoder.step(30))
        tokens = tokens + taken[-1].tokens
    return taken, tokens


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_every_text_is_the_one_of_decoding_one_by_one(level, rate, target):
    text = one_by_one()
    _, tokens = steps(Speculator(target, drafter(level, rate)), text)
    assert tokens == text[: len(tokens)]
    assert len(set(tokens)) > 3


@pytest.mark.parametrize("level", LEVELS)
def test_without_errors_every_draft_is_accepted_whole(level, target):
    taken, _ = steps(Speculator(target, drafter(level, 0.0)), one_by_one())
    assert max(len(step.path) for step in taken) >= 3
    for step in taken:
        branch = step.tree.branch if isinstance(step.tree, PlantedTree) else range(1, len(step.tree))
        assert step.path == list(branch)
    # Behind a draft that was accepted whole the head waits for its model, so that not every step has one.
    assert sum(len(step.path) > 0 for step in taken) >= len(taken) / 2


@pytest.mark.parametrize("level", LEVELS)
def test_with_errors_alone_nothing_is_accepted(level, target):
    taken, _ = steps(Speculator(target, drafter(level, 1.0)), one_by_one())
    assert [step.accepted_length for step in taken] == [1] * (NEW_TOKENS - 1)
    assert all(len(step.tree) > 1 for step in taken)


@pytest.mark.parametrize("level", LEVELS)
def test_verification_finds_the_rate_that_was_planted(level, target):
    decoder = Speculator(target, drafter(level, 0.3))
    found = np.zeros(2, dtype=int)
    for prompt in ([first, 2, 3] for first in range(16)):
        taken, _ = steps(decoder, one_by_one(prompt), prompt)
        found += np.sum([judged_and_accepted(step) for step in taken], axis=0)
    judged, accepted = found
    low, high = binom.interval(0.999, judged, 0.7)
    assert judged > 250
    assert low <= accepted <= high
    for other in (0.5, 0.9):  # what another rate would have given is told apart
        low, high = binom.interval(0.999, judged, other)
        assert not low <= accepted <= high


def test_the_inner_level_finds_its_own_rate(target):
    decoder = Speculator(target, drafter("hierarchical", 0.1, inner_rate=0.4))
    found = np.zeros(2, dtype=int)
    for prompt in ([first, 2, 3] for first in range(12)):
        decoder.drafter.follow(prompt + (text := one_by_one(prompt)))
        tokens = decoder.prefill(prompt, Greedy()).tokens
        while len(tokens) < NEW_TOKENS:
            tokens = tokens + decoder.step(30).tokens
            found += np.sum([judged_and_accepted(step) for step in decoder.drafter.rounds], axis=0)
        assert tokens == text[: len(tokens)]
    low, high = binom.interval(0.999, found[0], 0.6)
    assert found[0] > 200
    assert low <= found[1] <= high


def test_models_and_heads_really_run(target, monkeypatch):
    decoder = Speculator(target, drafter("hierarchical", 0.2))
    small, head = decoder.drafter.drafter.model, decoder.drafter.drafter.drafter.drafter.head
    passes = {"small": 0, "head": 0}
    for name, module in (("small", small), ("head", head)):
        module.register_forward_hook(lambda *_, name=name: passes.__setitem__(name, passes[name] + 1))
    taken, _ = steps(decoder, one_by_one())
    rounds = sum(len(step.inner_accepted_lengths) for step in taken)
    assert passes["small"] > rounds  # and the prompt
    assert passes["head"] > rounds


def test_the_same_seed_plants_the_same(target):
    text = one_by_one()
    runs = []
    for seed in (1, 1, 2):
        taken, _ = steps(Speculator(target, drafter("eagle2", 0.3, seed=seed)), text)
        runs.append([step.path for step in taken])
    assert runs[0] == runs[1] != runs[2]


def test_the_branch_is_drawn_anew_and_the_rest_is_wrong():
    planted = PlantedDrafts(SHAPES[:1], Errors(0.0, VOCABULARY), 96, "cpu")
    planted.follow(text := [3, 1, 4, 1, 5, 9])
    planted.start([3, 1], None, Greedy())
    branches = set()
    for _ in range(50):
        tree = planted.propose(9)
        branches.add(tree.branch)
        right = [node for node in range(1, 7) if tree.tokens[node] == text[1 + tree.depths[node]]]
        assert right == list(tree.branch)
        for parent in set(SHAPES[0]):
            siblings = [int(tree.tokens[node]) for node in range(7) if SHAPES[0][node] == parent]
            assert len(set(siblings)) == len(siblings)
    assert branches == {(1, 3, 5), (1, 4), (2, 6)}


def test_behind_the_known_text_and_within_a_low_limit_there_is_no_draft():
    planted = PlantedDrafts(SEQUENCE, Errors(0.0, VOCABULARY), 96, "cpu")
    planted.follow(range(10))
    planted.start([0, 1, 2, 3], None, Greedy())
    assert planted.propose(6).tokens.tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert planted.propose(5).tokens.tolist() == [3]
    planted.commit(4, [4], None)
    assert planted.propose(6).tokens.tolist() == [4]


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_what_is_no_rate_is_refused(rate):
    with pytest.raises(SpecquantError, match=f"the error rate is {rate}: give a probability, from 0 to 1"):
        Errors(rate, VOCABULARY)


def test_shapes_that_do_not_fit_are_refused():
    head = EagleDrafter(random_head(random_model()), 7, 3, 3)
    with pytest.raises(SpecquantError, match="7 nodes needs recorded trees of that size"):
        PlantedDrafts([[-1, 0]], Errors(0.0, VOCABULARY), 96, "cpu", head)
    with pytest.raises(SpecquantError, match="a draft of 7 nodes cannot have different wrong tokens"):
        PlantedDrafts(SEQUENCE, Errors(0.0, 7), 96, "cpu")


def test_a_model_says_the_text_whatever_its_logits_are(target):
    model = PlantedModel(Speculator(random_model(seed=5), None, 4), Errors(0.0, VOCABULARY))
    model.follow(torch.arange(20).tolist())
    model.start([0, 1, 2], None, Greedy())
    assert model.propose(9).tokens.tolist() == [2, 3, 4, 5, 6]
