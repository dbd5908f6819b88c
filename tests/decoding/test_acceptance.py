"""The rules on fixed trees and logits. Sampling: by chi-square, and that the test would notice a broken rule."""

import math

import pytest
import torch
from scipy.stats import chisquare

from specquant.decoding import DraftTree, Greedy, Sampling
from specquant.errors import SpecquantError

VOCABULARY = 6


def logits_choosing(*tokens):
    logits = torch.zeros(len(tokens), VOCABULARY)
    logits[range(len(tokens)), list(tokens)] = 5.0
    return logits


#   root 0 -> 1 (token 3) -> 3 (token 5) -> 5 (token 1)
#          -> 2 (token 4) -> 4 (token 2)
TREE = DraftTree.from_parents(torch.tensor([0, 3, 4, 5, 2, 1]), torch.tensor([-1, 0, 0, 1, 2, 3]))


@pytest.mark.parametrize(
    ("choices", "path", "tokens"),
    [
        ((3, 5, 0, 1, 0, 2), [1, 3, 5], [3, 5, 1, 2]),  # everything on the left branch
        ((3, 5, 2, 0, 0, 2), [1, 3], [3, 5, 0]),  # its last token is rejected
        ((4, 5, 2, 1, 5, 2), [2, 4], [4, 2, 5]),  # the right branch
        ((4, 5, 3, 1, 5, 2), [2], [4, 3]),
        ((1, 5, 2, 1, 5, 2), [], [1]),  # no child of the root; a rejected node's child is not accepted
    ],
)
def test_greedy_keeps_the_path_of_the_likeliest_tokens(choices, path, tokens):
    assert Greedy().judge(TREE, logits_choosing(*choices)).read()[:2] == (path, tokens)


def joint_counts(rule, tree, logits, draws, redraw=None):
    """How often each pair of first two tokens comes out; the second is drawn afresh where the draft ended."""
    counts = torch.zeros(VOCABULARY, VOCABULARY)
    p = rule.distributions(logits)
    for _ in range(draws):
        tree_now = redraw() if redraw else tree
        accepted = rule.accept(tree_now, logits_of(tree_now, logits))
        tokens = accepted.tokens
        if len(tokens) == 1:  # what the next step would add: here every first token has the same successor distribution
            tokens.append(int(torch.multinomial(p[1], 1, generator=rule.generator)))
        counts[tokens[0], tokens[1]] += 1
    return counts


def logits_of(tree, logits):
    """The model of this test: its distribution depends on the depth alone."""
    return logits[tree.depths]


def p_value(rule, tree, logits, draws=6000, redraw=None):
    p = rule.distributions(logits)
    expected = draws * p[0][:, None] * p[1][None, :]
    counts = joint_counts(rule, tree, logits, draws, redraw)
    assert counts[expected == 0].sum() == 0
    return chisquare(counts[expected > 0], expected[expected > 0]).pvalue


LOGITS = torch.tensor(
    [[0.3, 1.2, -0.5, 0.9, 0.0, -1.0], [1.0, 0.1, 0.4, -0.6, 0.8, -0.2], [0.0, 0.5, 0.2, 0.1, 0.9, -0.4]]
)
# Two children of the root and two of the first child: a top-k, not a sample.
TOP_K_TREE = DraftTree.from_parents(torch.tensor([0, 1, 3, 0, 4]), torch.tensor([-1, 0, 0, 1, 1]))
DRAFT = torch.softmax(
    torch.tensor([[0.0] * 6, [1.0, 0.2, 0.1, 0.5, -0.3, 0.0], [0.1, 0.9, 0.2, 0.4, 0.0, 0.3]]), dim=-1
)


def sampled_sequence(generator):
    def redraw():
        tokens = torch.multinomial(DRAFT, 1, generator=generator).flatten()
        return DraftTree.sequence(tokens, q=DRAFT)

    return redraw


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_sampling_from_a_tree_has_the_models_joint_distribution(top_p):
    assert p_value(Sampling(0.8, top_p, seed=5), TOP_K_TREE, LOGITS) > 1e-3


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_sampling_from_a_sequence_has_the_models_joint_distribution(top_p):
    redraw = sampled_sequence(torch.Generator().manual_seed(1))
    assert p_value(Sampling(0.8, top_p, seed=5), None, LOGITS, redraw=redraw) > 1e-3


class ForgetsTheResidual(Sampling):
    """Broken on purpose: after a rejection it samples from p again."""

    def residual(self, p, x, q):
        return p


class AcceptsTooEasily(Sampling):
    """Broken on purpose: it accepts with probability sqrt(p) instead of p."""

    def uniform(self):
        return super().uniform() ** 2


@pytest.mark.parametrize("broken", [ForgetsTheResidual, AcceptsTooEasily])
def test_the_chi_square_test_notices_a_broken_rule(broken):
    assert p_value(broken(0.8, seed=5), TOP_K_TREE, LOGITS) < 1e-6
    redraw = sampled_sequence(torch.Generator().manual_seed(1))
    assert p_value(broken(0.8, seed=5), None, LOGITS, redraw=redraw) < 1e-6


def test_the_nucleus_is_the_smallest_set_that_holds_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    p = Sampling(1.0, top_p=0.7).distributions(logits)[0]
    assert torch.allclose(p, torch.tensor([0.625, 0.375, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", value) for value in (-1.0, 0.0, math.nan, math.inf)]
    + [("top_p", value) for value in (0.0, 1.5, -0.1, math.nan)]
    + [("seed", value) for value in (2**64, -(2**63) - 1)],
)
def test_impossible_sampling_is_refused(field, value):
    with pytest.raises(SpecquantError, match=field.replace("_", "-")):
        Sampling(**{field: value})


def test_no_temperature_is_too_small():
    p = Sampling(temperature=5e-324).distributions(torch.tensor([[1.0, 3.0, 3.0, -torch.inf]]))
    assert p.tolist() == [[0, 0.5, 0.5, 0]]


def test_the_largest_and_the_smallest_seed_are_taken():
    for seed in (2**64 - 1, -(2**63)):
        assert Sampling(seed=seed).uniform() == Sampling(seed=seed).uniform()


def test_all_that_is_drawn_follows_from_the_seed():
    root = DraftTree.sequence(torch.tensor([0]))
    rules = Sampling(seed=4), Sampling(seed=4)
    drawn = [[rule.accept(root, LOGITS[:1]).tokens for _ in range(20)] for rule in rules]
    assert drawn[0] == drawn[1]


def test_what_is_handed_up_are_the_distributions_before_any_child_was_rejected():
    rule = Sampling(0.8, seed=2)
    for _ in range(30):
        accepted = rule.accept(TOP_K_TREE, logits_of(TOP_K_TREE, LOGITS))
        reached = logits_of(TOP_K_TREE, LOGITS)[[0, *accepted.path]]
        assert torch.equal(accepted.q, rule.distributions(reached))


def test_what_the_model_never_says_is_accepted_by_no_draw(monkeypatch):
    rule = Sampling(seed=1)
    monkeypatch.setattr(rule, "uniform", lambda: 0.0)
    logits = LOGITS.clone()
    logits[0, 3] = -torch.inf
    sequence = DraftTree.sequence(torch.tensor([0, 3]))
    assert rule.accept(sequence, logits).path == []
    logits[0, 3] = -9.0
    assert rule.accept(sequence, logits).path == [1]


def test_logits_that_are_no_numbers_are_not_sampled_from():
    with pytest.raises(SpecquantError, match="the model's logits are no numbers"):
        Sampling().distributions(torch.tensor([[0.0, torch.nan]]))


@pytest.mark.parametrize("rule", [Greedy(), Sampling(seed=3)])
def test_the_device_knows_the_rows_that_the_host_reads(rule):
    verdict = rule.judge(TREE, logits_choosing(3, 5, 0, 0, 0, 2))
    path = verdict.read().path
    assert verdict.rows.tolist() == [0, *path, *[-1] * (len(TREE) - 1 - len(path))]
