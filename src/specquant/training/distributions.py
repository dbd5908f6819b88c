"""How far predicted features are from a model's, judged by its LM head: cross-entropy, and how often tokens agree.

A vocabulary of 50,000 makes logits the largest tensors of a step by far. The LM head is not trained, so all that is
needed of them is the gradient of the features, [n, hidden]: it is computed with the loss, some positions at a time, and
no logits are kept.
"""

import torch
from torch import nn

LOGITS_AT_ONCE = {"cuda": 400_000_000, "cpu": 16_000_000}  # numbers in one tensor of them


def cross_entropy(
    predicted: torch.Tensor, wanted: torch.Tensor, lm_head: torch.Tensor, greedy_weight: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy of the tokens that predicted features say against those that wanted features say.

    Args:
        predicted: [depths, n, hidden].
        wanted: [n, hidden]; the model's own.
        lm_head: The model's LM head, [vocabulary, hidden], in the dtype of the products.
        greedy_weight: Of the model's most likely token, beside its distribution.

    Returns:
        A number, in nats; gradients go to `predicted` alone.
    """
    return _CrossEntropy.apply(predicted, wanted, lm_head, greedy_weight)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, predicted, wanted, lm_head, greedy_weight):
        depths, n, _ = predicted.shape
        gradient = torch.empty_like(predicted)
        total = torch.zeros((), dtype=torch.float32, device=predicted.device)
        size = chunk_size(lm_head)
        with torch.autocast(predicted.device.type, enabled=False):
            for first in range(0, n, size):
                part = slice(first, first + size)
                missing = size - len(wanted[part]) if predicted.is_cuda else 0  # one shape, compiled once
                teacher = _padded(wanted[part], missing).to(lm_head.dtype) @ lm_head.t()
                for depth in range(depths):
                    logits = _padded(predicted[depth, part], missing).to(lm_head.dtype) @ lm_head.t()
                    losses, difference = _loss_and_gradient(logits, teacher, greedy_weight)
                    total += losses[: size - missing].sum()
                    gradient[depth, part] = (difference @ lm_head)[: size - missing].to(gradient.dtype)
        ctx.save_for_backward(gradient.div_(depths * n))
        return total / (depths * n)

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad, None, None, None


def _padded(features: torch.Tensor, rows: int) -> torch.Tensor:
    return nn.functional.pad(features, (0, 0, 0, rows)) if rows else features


def loss_and_gradient(logits: torch.Tensor, teacher: torch.Tensor, greedy_weight: float):
    """The losses of rows of logits, and the gradients of their sum, in the logits' dtype."""
    wanted = teacher.float().softmax(-1)
    if greedy_weight:
        likeliest = torch.arange(logits.shape[-1], device=logits.device) == teacher.argmax(-1, keepdim=True)
        wanted = (1 - greedy_weight) * wanted + greedy_weight * likeliest
    log_p = logits.float().log_softmax(-1)
    return -(wanted * log_p).sum(-1), (log_p.exp() - wanted).to(logits.dtype)


_compiled = None


def _loss_and_gradient(logits, teacher, greedy_weight):
    """`loss_and_gradient`, compiled on a GPU; where the compiler does not work, plain."""
    global _compiled
    if not logits.is_cuda:
        return loss_and_gradient(logits, teacher, greedy_weight)
    if _compiled is None:
        try:
            compiled = torch.compile(loss_and_gradient, dynamic=False)
            compiled(logits, teacher, greedy_weight)
            _compiled = compiled
        except Exception as error:  # whatever the compiler raises, training goes on without it
            print(f"torch.compile does not work here ({type(error).__name__}); going on without", flush=True)
            _compiled = loss_and_gradient
    return _compiled(logits, teacher, greedy_weight)


@torch.no_grad()
def agreement(predicted: torch.Tensor, wanted: torch.Tensor, lm_head: torch.Tensor) -> torch.Tensor:
    """How many of the most likely tokens are the same, [depths]; arguments are those of `cross_entropy`."""
    same = torch.zeros(len(predicted), dtype=torch.float64, device=predicted.device)
    with torch.autocast(predicted.device.type, enabled=False):
        for part in torch.arange(predicted.shape[1], device=predicted.device).split(chunk_size(lm_head)):
            tokens = (wanted[part].to(lm_head.dtype) @ lm_head.t()).argmax(-1)
            for depth, features in enumerate(predicted):
                same[depth] += ((features[part].to(lm_head.dtype) @ lm_head.t()).argmax(-1) == tokens).sum()
    return same


def chunk_size(lm_head: torch.Tensor) -> int:
    """Positions whose logits are computed at once."""
    return max(16, LOGITS_AT_ONCE[lm_head.device.type] // len(lm_head) // 16 * 16)
