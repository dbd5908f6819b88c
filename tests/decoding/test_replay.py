"""Replayed acceptance: the passes are real, and what counts follows the stated probabilities."""

import numpy as np
import pytest
import torch

from specquant.decoding import DraftTree, EagleDrafter, Greedy, Speculator
from specquant.decoding.budget import Prices
from specquant.decoding.drafters.prompt_lookup import PromptLookupDrafter
from specquant.decoding.drafters.replay import (
    TEXT_TOKENS,
    ReplayedLookup,
    ReplayedTrees,
    TracedBudget,
    TracedTrees,
    with_replayed_lookups,
)
from specquant.decoding.lookup import FirstDraft
from specquant.decoding.replay import ConfidenceTrace, Replay, ShapedTree
from specquant.decoding.traces import Trace, read_traces
from specquant.errors import SpecquantError
from tests.decoding.conftest import random_head, random_model

SHAPE = [-1, 0, 0, 1, 1, 3, 2]  # the longest path is 1, 3, 5


def logits_for(tree, vocab_size=11):
    return torch.randn(len(tree), vocab_size, generator=torch.Generator().manual_seed(0))


def test_the_longest_path_of_a_shape():
    tree = ShapedTree.of(SHAPE, "cpu")
    assert tree.longest == (1, 3, 5)
    assert tree.depths.tolist() == [0, 1, 1, 2, 2, 3, 2]
    assert ShapedTree.of([-1, 0, 0], "cpu").longest == (1,)


def test_tokens_are_accepted_as_often_as_is_stated():
    tree = ShapedTree.of(SHAPE, "cpu")
    rule = Replay([0.9, 0.5], 0.0, seed=1)
    paths = [rule.judge(tree, logits_for(tree)).read().path for _ in range(4000)]
    assert all(path == [1, 3, 5][: len(path)] for path in paths)
    reached = [np.mean([len(path) >= depth for path in paths]) for depth in (1, 2, 3)]
    np.testing.assert_allclose(reached, [0.9, 0.45, 0.225], atol=0.03)


def test_few_tokens_have_the_mean_of_many():
    tree = DraftTree.sequence(torch.arange(2))
    rule = Replay([0.0], 0.7, seed=4)
    accepted = [len(rule.judge(tree, logits_for(tree)).read().path) for _ in range(64)]
    assert abs(sum(accepted) - 0.7 * 64) <= 2  # one for each block of 32; drawn one by one, most sums are further off


def test_sequences_follow_the_agreement():
    tree = DraftTree.sequence(torch.arange(5))
    rule = Replay([0.0], 0.7, seed=2)
    lengths = [len(rule.judge(tree, logits_for(tree)).read().path) for _ in range(4000)]
    assert np.mean(lengths) == pytest.approx(sum(0.7**i for i in range(1, 5)), abs=0.08)


@pytest.mark.parametrize("rule", [Greedy(), Replay([1.0], 1.0)])
def test_a_root_alone_gets_the_likeliest_token(rule):
    tree = DraftTree.sequence(torch.tensor([3]))
    logits = logits_for(tree)
    verdict = rule.judge(tree, logits)
    assert verdict.read()[:2] == ([], verdict.token.tolist()) == ([], [int(logits[0].argmax())])
    assert verdict.token.storage_offset() == 0  # where kernels expect a tensor to begin


@pytest.mark.parametrize(("head", "agreement"), [([], 0.5), ([1.1], 0.5), ([0.5], -0.1), ([float("nan")], 0.5)])
def test_what_is_no_probability_is_refused(head, agreement):
    with pytest.raises(SpecquantError, match="probabilities from 0 to 1"):
        Replay(head, agreement)


def speculator(shapes):
    model = random_model()
    small = random_model(seed=5)
    drafter = ReplayedTrees(EagleDrafter(random_head(small), 7, 3, 3), shapes, "cpu")
    return Speculator(model, Speculator(small, drafter, min_draft_length=4))


def steps(shapes, rule, count=8):
    decoder = speculator(shapes)
    decoder.prefill([1, 2, 3], rule)
    return [decoder.step(30) for _ in range(count)]


def test_every_level_replays():
    """All accepted: rounds of 3 levels and a token each, and a round for the token that the small model lacks."""
    taken = steps([SHAPE], Replay([1.0], 1.0))
    assert [step.inner_accepted_lengths for step in taken] == [[4], *[[1, 4]] * 7]
    assert [step.accepted_length for step in taken] == [5, *[6] * 7]


def test_nothing_accepted_is_a_token_a_step():
    taken = steps([SHAPE], Replay([0.0], 0.0))
    assert [step.accepted_length for step in taken] == [1] * 8
    assert [step.inner_accepted_lengths for step in taken] == [[1] * 4] * 8


def test_the_same_seed_replays_the_same():
    first, second = (steps([SHAPE, [-1, 0, 1, 2, 0, 0, 0]], Replay([0.6], 0.8, seed=7)) for _ in range(2))
    assert [step.accepted_length for step in first] == [step.accepted_length for step in second]
    assert len({step.accepted_length for step in first}) > 1


def test_shapes_of_another_size_are_refused():
    with pytest.raises(SpecquantError, match="7 nodes needs recorded trees of that size"):
        speculator([[-1, 0]])


def test_what_was_recorded_is_accepted_again_step_by_step():
    """Whatever the tokens are: the rounds' paths in their order, and of the target's sequences as many tokens."""
    rounds = [Trace(tuple(SHAPE), path) for path in ((1, 4), (2,), (1, 3, 5), ())]
    taken = steps(rounds, Replay([0.0], 0.0, sequences=[2, 0, 3]), 6)
    # Until at least 4 tokens are drafted.
    assert [step.inner_accepted_lengths for step in taken[:3]] == [[3, 2], [4], [1, 3]]
    assert [len(step.path) for step in taken] == [2, 0, 3, 2, 0, 3]
    whole = steps(rounds, Replay([0.0], 0.0, sequences=[None]), 2)
    assert [step.accepted_length for step in whole] == [6, 6]  # the second begins with a round that has no draft


def test_a_lookup_searches_a_text_that_repeats_itself_and_drafts_what_was_recorded():
    """Two tokens are the same to it, by their remainder: it finds what followed the first of them, two tokens."""
    lookup = PromptLookupDrafter(10**6, 64)
    drafter = ReplayedLookup(lookup, read_traces("111/0 / 1/0"), "cpu")
    drafter.start([5, 6, 7 * TEXT_TOKENS + 5], None, None)
    assert lookup.propose(9).tokens.tolist() == [5, 6, 5]
    assert drafter.propose(2).tokens.tolist() == [5]  # less room than the next draft needs, which is kept
    drafts = [drafter.propose(9) for _ in range(4)]
    assert [draft.tokens.tolist() for draft in drafts] == [[5, 6, 5, 5], [5], [5, 6], [5, 6, 5, 5]]
    assert [draft.accepted for draft in drafts] == [(1,), (), (1,), (1,)]
    drafter.commit(3, [6, 2 * TEXT_TOKENS + 8], None)
    assert lookup.tokens == [5, 6, 5, 6, 8]


def test_a_lookup_is_replayed_wherever_it_stands():
    model, recorded = random_model(), read_traces("11/0")
    vocab_size, length = model.config.vocab_size, model.context_length

    def lookup():
        return PromptLookupDrafter(vocab_size, length)

    assert isinstance(with_replayed_lookups(lookup(), recorded), ReplayedLookup)
    joined = with_replayed_lookups(FirstDraft(lookup(), EagleDrafter(random_head(model), 7, 3, 3)), recorded)
    assert [type(each) for each in joined.drafters] == [ReplayedLookup, EagleDrafter]
    inner = with_replayed_lookups(Speculator(model, lookup(), min_draft_length=4), recorded)
    assert isinstance(inner.drafter, ReplayedLookup)
    alone = Speculator(model, None, min_draft_length=4)
    assert with_replayed_lookups(alone, recorded) is alone
    assert alone.drafter is None


TRACES = (
    ConfidenceTrace(np.array([1.0, 0.9, 0.8, 0.7, 0.1, 0.1, 0.1]), (-1, 0, 1, 2, 0, 0, 0), (0, 1, 2)),
    ConfidenceTrace(np.array([1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1]), (-1, 0, 0, 0, 1, 1, 2), (0, 2)),
)


def test_traced_trees_are_drafted_in_turn_with_the_drafter_s_tokens():
    """One a step; and anew for each text."""
    model = random_model()
    drafter = TracedTrees(EagleDrafter(random_head(model), 7, 3, 3), TRACES)
    decoder = Speculator(model, drafter)
    for _ in range(2):
        decoder.prefill([1, 2, 3], Replay([0.0], 0.0))
        taken = [decoder.step(30) for _ in range(3)]
        assert [tuple(step.tree.parents.tolist()) for step in taken] == [TRACES[n].parents for n in (0, 1, 0)]
        assert [step.path for step in taken] == [[1, 2], [2], [1, 2]]
        assert all(step.tree.tokens.unique().numel() > 2 for step in taken)


def test_fewer_iterations_draft_less_of_a_trace():
    """Where there is room for one alone, its deeper nodes are not there to be accepted."""
    model = random_model()
    decoder = Speculator(model, TracedTrees(EagleDrafter(random_head(model), 3, 3, 3), TRACES[:1]))
    decoder.prefill([1, 2, 3], Replay([0.0], 0.0))
    assert [decoder.step(limit).path for limit in (2, 30, 2)] == [[1], [1, 2], [1]]


def test_a_budget_learns_what_was_recorded_of_whole_trees_alone():
    budget = TracedBudget(Prices({1: 10.0, 7: 10.0}, [0.1] * 3), 3)
    learned = []
    budget._weigh = lambda depths, chances: (learned.append((depths.tolist(), chances.tolist())), budget._tokens)[1]
    budget.trace = TRACES[0]
    for said in ((np.ones(7), np.zeros(7)), ()):
        budget.begin(3)
        budget.learn(2, *said)
        budget.choose()
    assert learned == [(TRACES[0].depths.tolist(), TRACES[0].confidence.tolist())]
