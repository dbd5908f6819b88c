"""Acceptance rules: what of a draft is kept, and which token the model adds.

A rule sees only the tree and the model's logits on it, so every rule works for sequences and trees, and for every
model and drafter. Both rules here are lossless: `Greedy` gives exactly the tokens, and `Sampling` exactly the
distribution, that the model has without drafts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from specquant.decoding.tree import DraftTree, on_device
from specquant.errors import SpecquantError
from specquant.kernels.acceptance import accept_greedily


class Acceptance(NamedTuple):
    """path: accepted rows of the tree in order, without the root. tokens: theirs, and the one that the model adds.

    q: None, or [len(tokens), vocab_size]: the distributions that the tokens follow. A speculator that drafts for a
    larger model hands them up.
    """

    path: list[int]
    tokens: list[int]
    q: torch.Tensor | None = None


class Verdict(NamedTuple):
    """What is accepted, as the device knows it before the host does, so that a step goes on without waiting.

    rows: int64 [n], those of the tree's n rows that are kept, from the root on, filled up with -1. read: what the host
    must know of it; here it waits for the device, and nowhere else in a step. token: int64 [1], what the model adds
    to a root alone; None for other trees, and where the device does not have it.
    """

    rows: torch.Tensor
    read: Callable[[], Acceptance]
    token: torch.Tensor | None = None


class AcceptanceRule(Protocol):
    def judge(self, tree: DraftTree, logits: torch.Tensor) -> Verdict:
        """Judge a tree [n] by the logits [n, vocab_size] that the model has after each of its nodes."""
        ...


class Greedy:
    """Keep the longest path whose every token is the model's most likely one."""

    def judge(self, tree: DraftTree, logits: torch.Tensor) -> Verdict:
        accepted = accept_greedily(tree.tokens, tree.parents, tree.ancestors, logits)

        def read() -> Acceptance:
            rows, tokens = accepted.tolist()
            count = sum(row >= 0 for row in rows)
            return Acceptance(rows[1:count], tokens[:count])

        return Verdict(accepted[0], read, added_to_root(accepted))


def added_to_root(accepted: torch.Tensor) -> torch.Tensor | None:
    """The `token` of a `Verdict`, from what `accept_greedily` returns.

    It is copied, so that it begins at a multiple of 16 bytes. For another address kernels would be compiled once more,
    in the middle of decoding.
    """
    return accepted[1].clone() if accepted.shape[1] == 1 else None


class NoNumbers(SpecquantError):
    """A model's logits are infinite or NaN."""


def require_numbers(logits: torch.Tensor) -> None:
    """Raises NoNumbers where a row of a model's logits are no numbers. Tokens that it lacks may be at -inf."""
    if not bool(logits.amax(dim=-1).isfinite().all()):
        dtype = str(logits.dtype).removeprefix("torch.")
        raise NoNumbers(
            f"the model's logits are no numbers: its activations overflow in {dtype}, or its weights are damaged; try "
            "another --dtype (bfloat16, float32)"
        )


@dataclass
class Sampling:
    """Lossless sampling at a temperature from the nucleus `top_p`.

    At each node the children are tried in order: a child x drawn from q is accepted with probability
    min(1, p(x) / q(x)), else p becomes the normalized max(p - q, 0) (speculative sampling, arXiv 2302.01318, with
    several children as in SpecInfer, arXiv 2305.09781). Where drafts were chosen deterministically, q is a point mass:
    x is accepted with probability p(x), else taken out of p.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise SpecquantError(
                f"sampling needs a finite temperature above 0, not {self.temperature}: 0 means greedy decoding"
            )
        if not 0 < self.top_p <= 1:
            raise SpecquantError(f"top-p is the probability of the nucleus, above 0 and at most 1, not {self.top_p}")
        if not -(2**63) <= self.seed < 2**64:
            raise SpecquantError(f"the seed {self.seed} does not fit into 64 bits: choose a smaller one")
        self.generator = torch.Generator().manual_seed(self.seed)

    def judge(self, tree: DraftTree, logits: torch.Tensor) -> Verdict:
        accepted = self.accept(tree, logits)
        return Verdict(padded_rows(accepted.path, len(tree), logits.device), lambda: accepted)

    def accept(self, tree: DraftTree, logits: torch.Tensor) -> Acceptance:
        """What is accepted, drawn on the host. Of the nodes that are reached alone it needs the distributions."""
        logits, reached = logits.cpu(), []
        tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
        children: dict[int, list[int]] = {}
        for row in range(1, len(tokens)):
            children.setdefault(parents[row], []).append(row)
        path, node = [], 0
        while True:
            reached.append(self.distributions(logits[node : node + 1]))
            p = reached[-1][0]
            for child in children.get(node, ()):
                x = tokens[child]
                q_of_x = 1.0 if tree.q is None else float(tree.q[child, x])
                if self.uniform() * q_of_x < float(p[x]):
                    path.append(child)
                    break
                p = self.residual(p, x, None if tree.q is None else tree.q[child].to(p))
            else:
                token = int(torch.multinomial(p, 1, generator=self.generator))
                return Acceptance(path, [*(tokens[row] for row in path), token], torch.cat(reached))
            node = path[-1]

    def distributions(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [n, vocab_size] -> the distributions that are sampled from, float64 on the CPU, same shape.

        Raises SpecquantError as `require_numbers`.
        """
        require_numbers(logits)
        logits = logits.double().cpu()
        # The largest is 0 before the division, so that no temperature is too small.
        p = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / self.temperature, dim=-1)
        if self.top_p == 1:
            return p
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        # A token stays if the more likely ones before it do not fill the nucleus: the most likely one always stays.
        outside = ordered.cumsum(dim=-1) - ordered >= self.top_p
        p = torch.zeros_like(p).scatter(-1, order, ordered.masked_fill(outside, 0))
        return p / p.sum(dim=-1, keepdim=True)

    def residual(self, p: torch.Tensor, x: int, q: torch.Tensor | None) -> torch.Tensor:
        """What is left of p [vocab_size] after the child x was rejected."""
        if q is None:
            rest = p.clone()
            rest[x] = 0
        else:
            rest = (p - q).clamp(min=0)
        return rest / rest.sum()

    def uniform(self) -> float:
        return float(torch.rand((), dtype=torch.float64, generator=self.generator))


def padded_rows(path: list[int], n: int, device: torch.device) -> torch.Tensor:
    """The rows of a `Verdict` over a tree of n rows, where the host knows the path already."""
    return on_device([0, *path, *[-1] * (n - 1 - len(path))], device)
