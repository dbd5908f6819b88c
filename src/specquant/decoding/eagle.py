"""EAGLE-2 drafting: a dynamic tree from a one-layer head (arXiv 2406.16858)."""

import torch

from specquant.decoding.acceptance import AcceptanceRule
from specquant.decoding.tree import DraftTree
from specquant.errors import SpecquantError
from specquant.kernels.activations import compute_dtype
from specquant.kernels.top_k import log_softmax_top_k
from specquant.kernels.tree import Frontier, Proposals, expand, rerank
from specquant.models.eagle import EagleHead
from specquant.models.llama import PREFILL_CHUNK, causal_mask


class EagleDrafter:
    """Grows a tree by cumulative confidence, then keeps its best nodes.

    Every iteration runs the head once. The first runs the newly confirmed tokens on their true features and takes the
    `top_k` likeliest next tokens; each further one runs the `top_k` likeliest paths so far, each of which proposes
    `top_k` children. Of all proposals, the `draft_size - 1` with the highest probability of their whole path stay
    (EAGLE-2, section 4). `draft_size` counts the root.

    The head's row t needs the feature of position t and the token at t + 1. True features and confirmed tokens are kept
    by position; what the head computed for drafts lies behind its cache's confirmed slots and is overwritten.
    """

    def __init__(
        self,
        head: EagleHead,
        draft_size: int = 60,
        iterations: int = 6,
        top_k: int = 10,
    ):
        if min(draft_size, iterations, top_k) < 1:
            raise SpecquantError(
                "an EAGLE-2 tree needs a draft size, iterations and top-k of at least 1, not "
                f"{draft_size}, {iterations} and {top_k}"
            )
        largest = 1 + top_k + (iterations - 1) * top_k**2
        if draft_size > largest:
            raise SpecquantError(
                f"a draft size of {draft_size} does not exist: {iterations} iterations with top-k {top_k} grow a tree "
                f"of at most {largest} nodes (with its root); ask for fewer nodes or more iterations"
            )
        if top_k > head.config.vocab_size:
            raise SpecquantError(f"top-k {top_k} is more than the vocabulary has ({head.config.vocab_size})")
        self.head = head
        self.draft_size, self.iterations, self.top_k = draft_size, iterations, top_k
        self.feature_map = None if head.feature_map is None else head.feature_map.to(head.dtype)
        self.vocab_size = head.config.vocab_size
        self.context_length = head.context_length
        self.cache = head.new_cache(self.context_length + iterations * top_k)
        self.features = torch.empty(self.context_length, head.config.hidden_size, dtype=head.dtype, device=head.device)
        self.tokens: list[int] = []
        self.known = 0  # positions whose true feature is known

    def start(self, tokens: list[int], features: torch.Tensor, rule: AcceptanceRule) -> None:
        self.tokens, self.known = [], 0
        self.cache.truncate(0)
        self.commit(0, tokens, features)
        # The prompt's rows but the last, which the first draft needs the output of.
        while self.cache.length < self.known - 1:
            self._run_confirmed(min(self.cache.length + PREFILL_CHUNK, self.known - 1))

    def commit(self, length: int, tokens: list[int], features: torch.Tensor) -> None:
        self.tokens[length:] = tokens
        self.known = min(self.known, length)
        if self.feature_map is not None:
            features = features @ self.feature_map
        self.features[self.known : self.known + len(features)] = features
        self.known += len(features)
        # Row t holds token t + 1; and the last confirmed row always runs again, for its output.
        self.cache.truncate(max(min(length - 1, len(self.tokens) - 2), 0))

    @torch.inference_mode()
    def propose(self, limit: int) -> DraftTree:
        root = torch.tensor(self.tokens[-1:], device=self.head.device)
        iterations = min(self.iterations, limit)
        # After the level above accepted a whole draft, the model has yet to run: the last feature is not known.
        if iterations < 1 or self.draft_size == 1 or self.known < len(self.tokens) - 1:
            return DraftTree.sequence(root)

        k = self.top_k
        outputs = self._run_confirmed(self.known)[-1:]
        proposals = Proposals.under(root, 1 + k + (iterations - 1) * k * k, compute_dtype(outputs))
        frontier, first = Frontier.root(proposals), 1
        for level in range(iterations):
            if level:
                positions = torch.full((k,), self.known + level - 1, device=root.device)
                outputs = self.head(frontier.tokens, outputs[frontier.parents], positions, self.cache, frontier.mask)
            log_p, tokens = log_softmax_top_k(self.head.logits(outputs), k)
            frontier = expand(proposals, first, frontier, log_p, tokens)
            first += log_p.numel()
        return DraftTree(*rerank(proposals, self.draft_size))

    def _run_confirmed(self, last: int) -> torch.Tensor:
        """Run the confirmed rows up to position `last`, exclusive, and confirm them in the head's cache."""
        first, device = self.cache.length, self.head.device
        tokens = torch.tensor(self.tokens[first + 1 : last + 1], device=device)
        positions = torch.arange(first, last, device=device)
        output = self.head(tokens, self.features[first:last], positions, self.cache, causal_mask(last - first, device))
        self.cache.length = last
        return output
