"""Cross-entropy without kept logits: value and gradient are those of the plain formula, in chunks, too."""

import pytest
import torch
import torch.nn.functional as F

from specquant.training import distributions
from specquant.training.distributions import agreement, chunk_size, cross_entropy


@pytest.fixture
def case():
    torch.manual_seed(0)
    return torch.randn(3, 50, 8, requires_grad=True), torch.randn(50, 8), torch.randn(20, 8)


@pytest.mark.parametrize("greedy_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("logits_at_once", [1, 10**6])
def test_it_is_the_plain_formula(case, monkeypatch, greedy_weight, logits_at_once):
    monkeypatch.setitem(distributions.LOGITS_AT_ONCE, "cpu", logits_at_once)
    predicted, wanted, lm_head = case
    assert (chunk_size(lm_head) < len(wanted)) == (logits_at_once == 1)
    loss = cross_entropy(predicted, wanted, lm_head, greedy_weight)
    (gradient,) = torch.autograd.grad(2 * loss, predicted)
    teacher = wanted @ lm_head.t()
    target = (1 - greedy_weight) * teacher.softmax(-1) + greedy_weight * F.one_hot(teacher.argmax(-1), 20)
    plain = -(target * (predicted @ lm_head.t()).log_softmax(-1)).sum(-1).mean()
    (expected,) = torch.autograd.grad(2 * plain, predicted)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("logits_at_once", [1, 10**6])
def test_agreement_counts_equal_likeliest_tokens(case, monkeypatch, logits_at_once):
    monkeypatch.setitem(distributions.LOGITS_AT_ONCE, "cpu", logits_at_once)
    predicted, wanted, lm_head = case
    predicted = predicted.detach()
    predicted[0] = wanted
    equal = (predicted @ lm_head.t()).argmax(-1) == (wanted @ lm_head.t()).argmax(-1)
    same = agreement(predicted, wanted, lm_head)
    assert same.tolist() == equal.sum(-1).tolist()
    assert same[0] == 50 > same[1]
