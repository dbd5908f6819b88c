"""EAGLE-2 drafting: a dynamic tree from a one-layer head (arXiv 2406.16858)."""

from collections.abc import Callable

import numpy as np
import torch

from specquant.decoding.acceptance import AcceptanceRule
from specquant.decoding.budget import Budget
from specquant.decoding.drafter import Drafter
from specquant.decoding.method import (
    ADAPTIVE,
    DraftSettings,
    Method,
    ModelCosts,
    Plan,
    Prediction,
    Statistics,
    TwoModels,
    known_trees,
    require_tree,
)
from specquant.decoding.tree import DraftTree, on_device
from specquant.errors import SpecquantError
from specquant.kernels.activations import compute_dtype
from specquant.kernels.tree import Frontier, Proposals, Tree, expand, rerank
from specquant.models import graphs
from specquant.models.cache import KVCache
from specquant.models.eagle import DraftHead
from specquant.models.llama import PREFILL_CHUNK, causal_mask
from specquant.tables.marks import Mark

MOST_FIRST_ROWS = 16  # confirmed tokens that a draft begins with; a level's step brings fewer, and each is a graph


class EagleDrafter(Drafter):
    """Grows a tree by cumulative confidence, then keeps its best nodes.

    Every iteration runs the head once. The first runs the newly confirmed tokens on their true features and takes the
    `top_k` likeliest next tokens; each further one runs the `top_k` likeliest paths so far, each of which proposes
    `top_k` children. Of all proposals, the `draft_size - 1` with the highest probability of their whole path stay
    (EAGLE-2, section 4). `draft_size` counts the root.

    The head's row t needs the feature of position t and the token at t + 1. True features and confirmed tokens are kept
    by position; what the head computed for drafts lies behind its cache's confirmed slots and is overwritten.

    vocab_size: of the tokens that it takes and gives (default: its head's configuration's). It never drafts tokens
    beyond that, and reads those that its head lacks as the head's last one. budget: chooses iterations and size of each
    tree, up to these.

    On a GPU, with a head that computes in 16 bits, a draft is one CUDA graph for each number of confirmed tokens that
    it begins with, captured when it is first needed, and the host waits for nothing. With a budget there is one for
    each way to draft as well, the very graph that drafts in that way without a budget. Confidence that the budget is to
    look at is copied behind it.
    """

    needs_features = True

    def __init__(
        self,
        head: DraftHead,
        draft_size: int = 60,
        iterations: int = 6,
        top_k: int = 10,
        vocab_size: int | None = None,
        budget: Budget | None = None,
    ):
        require_tree(draft_size, iterations, top_k)
        vocab_size = vocab_size or head.config.vocab_size
        known = min(head.lm_head.out_features, vocab_size)
        if head.vocabulary is not None:
            known = int((head.vocabulary < vocab_size).sum())
        if top_k > known:
            raise SpecquantError(f"top-k {top_k} is more than the vocabulary has ({known})")
        self.head, self.budget = head, budget
        self.draft_size, self.iterations, self.top_k = draft_size, iterations, top_k
        self.feature_layers = head.feature_layers
        self.vocab_size, self.known_tokens = vocab_size, known
        self.context_length = head.context_length
        self.cache = head.new_cache(self.context_length + iterations * top_k)
        self.features = torch.empty(self.context_length, head.config.hidden_size, dtype=head.dtype, device=head.device)
        self.tokens: list[int] = []
        self.known = 0  # positions whose true feature is known
        self.latest_iterations = 0  # of the latest tree
        self._said: torch.Tensor | None = None  # the scores of a draft that the budget looks at, on the host
        self._graphs: dict[tuple[int, int, int], CapturedDraft] | None = None
        if graphs.capturable(head):
            self._graphs, self._pool = {}, torch.cuda.graph_pool_handle()

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        self.tokens, self.known = [], 0
        self.cache.truncate(0)
        if self.budget is not None:
            self.budget.start()
            self._said = None
        self.commit(0, tokens, features)
        self._catch_up()

    def _catch_up(self) -> None:
        """Run the confirmed rows but the last, of which the next draft needs the output."""
        for first in range(self.cache.length + 1, self.known, PREFILL_CHUNK):
            chunk = self.tokens[first : min(first + PREFILL_CHUNK, self.known)]
            self._run_confirmed(on_device(chunk, self.head.device), self.cache)

    def commit(self, length: int, tokens: list[int], features: torch.Tensor | None) -> None:
        assert features is not None  # `needs_features`
        if self.budget is not None:
            # The host has read what was accepted, so the copy is there. The last token is the model's own.
            self.budget.learn(len(tokens) - 1, *([] if self._said is None else self._likeliest(self._said)))
            self._said = None
        self.tokens[length:] = tokens
        self.known = min(self.known, length)
        self.features[self.known : self.known + len(features)] = self.head.known(features)
        self.known += len(features)
        # Row t holds token t + 1; and the last confirmed row always runs again, for its output.
        self.cache.truncate(max(min(length - 1, len(self.tokens) - 2), 0))

    @torch.inference_mode()
    def propose(self, limit: int) -> DraftTree:
        size, iterations = self.draft_size, min(self.iterations, limit)
        # After the level above accepted a whole draft, the model has yet to run: the last feature is not known.
        if iterations < 1 or size == 1 or self.known < len(self.tokens) - 1:
            return self._only_root()
        if self.budget is not None:
            size, iterations = self.budget.begin(iterations)
            if not iterations:
                self.budget.choose()
                return self._only_root()
        if self.known - self.cache.length > max(MOST_FIRST_ROWS, self.iterations + 2):
            self._catch_up()  # another drafter was asked for a while
        length = self.cache.length
        tokens = self.tokens[length + 1 :]
        if self._graphs is None:
            tree, scores = self.draft(on_device(tokens, self.head.device), self.cache, iterations, size)
        else:
            key = len(tokens), iterations, size
            if key not in self._graphs:
                self._graphs[key] = CapturedDraft(self, *key, self._pool)
            tree, scores = self._graphs[key].run(tokens, length)
            self.cache.length = self.known
        if self.budget is not None:
            if self.budget.looks:
                self._said = scores.to("cpu", non_blocking=True)
            self.budget.choose()  # while a GPU drafts
        self.latest_iterations = iterations
        return DraftTree(tree.tokens, tree.parents, tree.depths, tree.ancestors, scores=tree.scores)

    def _likeliest(self, scores: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The confidence and depths of the likeliest proposals, by the scores of all, the root's and then level by
        level."""
        likeliest = (-scores.numpy()).argsort(kind="stable")[: self.draft_size]
        k = self.top_k
        depths = np.where(likeliest > k, 2 + (likeliest - 1 - k) // (k * k), likeliest > 0)
        return np.exp(scores.numpy()[likeliest]), depths

    def _only_root(self) -> DraftTree:
        return DraftTree.sequence(on_device(self.tokens[-1:], self.head.device))

    def draft(
        self, tokens: torch.Tensor, cache: KVCache | graphs.CapturedCache, iterations: int, size: int
    ) -> tuple[Tree, torch.Tensor]:
        """The tree under the last of `tokens`, int64 [n]: the confirmed tokens whose rows the cache lacks, which they
        are confirmed in; and the scores of all proposals. Nothing here depends on where the draft begins, but through
        the cache's length."""
        outputs, positions = self._run_confirmed(tokens, cache)
        outputs, positions = outputs[-1:], positions[-1:].repeat(self.top_k)
        proposals = Proposals.under(tokens[-1:], self._nodes(iterations), compute_dtype(outputs))
        frontier = Frontier.root(proposals)
        for level in range(iterations):
            if level:
                tokens, features = self._readable(frontier.tokens), outputs[frontier.parents]
                outputs = self.head(tokens, features, positions + level, cache, frontier.mask)
            log_p, children = self.head.likeliest(outputs, self.top_k, self.known_tokens)
            frontier = expand(proposals, self._nodes(level), frontier, log_p, children)
        return rerank(proposals, size), proposals.scores

    def _nodes(self, iterations: int) -> int:
        """That so many iterations propose, the root counted."""
        return 1 + self.top_k + (iterations - 1) * self.top_k**2 if iterations else 1

    def _run_confirmed(
        self, tokens: torch.Tensor, cache: KVCache | graphs.CapturedCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the rows whose tokens these are, int64 [n], and confirm them; gives outputs [n, hidden] and positions."""
        n, device = len(tokens), tokens.device
        positions = cache.length + torch.arange(n, device=device)
        output = self.head(self._readable(tokens), self.features[positions], positions, cache, causal_mask(n, device))
        cache.length += n
        return output, positions

    def _readable(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens, int64 [n], as the head can read them."""
        rows = self.head.embed_tokens.num_embeddings
        return tokens if self.vocab_size <= rows else tokens.clamp(max=rows - 1)


class CapturedDraft:
    """A draft that begins with a fixed number of confirmed tokens, with all that it reads and writes."""

    def __init__(self, drafter: EagleDrafter, rows: int, iterations: int, size: int, pool: tuple[int, int]):
        # The length, then the tokens: the device waits for one copy while the host starts a draft.
        self.inputs = torch.zeros(1 + rows, dtype=torch.int64, device=drafter.head.device)
        cache, tokens = graphs.CapturedCache(drafter.cache, self.inputs[:1]), self.inputs[1:]

        def run() -> tuple[torch.Tensor, ...]:
            tree, scores = drafter.draft(tokens, cache, iterations, size)
            return *tree, scores

        self.replay, self.drafted = graphs.capture(run, pool)

    def run(self, tokens: list[int], length: int) -> tuple[Tree, torch.Tensor]:
        """The tree behind `length` rows in the head's cache, and the scores of all proposals, which hold until the next
        draft."""
        self.inputs.copy_(torch.tensor([length, *tokens]), non_blocking=True)
        self.replay()
        *tree, scores = self.drafted
        return Tree(*(part.clone() for part in tree)), scores  # the next draft writes to the same place


class Eagle2(Method):
    """The target verifies the trees of its own head."""

    name = "eagle2"
    mark = Mark("EAGLE-2", "#0173b2", "^")
    place = 2
    companions = ("eagle_target",)
    trees_of = "target"
    head = "eagle"
    probes = tuple(Plan("eagle2", *tree) for tree in ((8, 2), (16, 3), (24, 3), (32, 4), (48, 6), (60, 6)))

    def plan(self, settings: DraftSettings) -> Plan:
        return Plan(self.name, *settings.tree)

    def drafter(
        self, plan: Plan, models: TwoModels, trees: Callable[[str], Drafter], settings: DraftSettings
    ) -> Drafter:
        return trees("target")

    def plans(self, costs: ModelCosts, statistics: Statistics, min_draft_lengths: list[int]) -> list[Plan]:
        trees = known_trees(statistics.trees, costs.target)
        adaptive = [(ADAPTIVE, max(depth for _, depth in trees))] if trees and statistics.knows_confidence else []
        return [Plan(self.name, *tree) for tree in (*trees, *adaptive)]

    def accepted_length(self, plan: Plan, statistics: Statistics) -> float:
        return statistics.tree_length(plan)

    def predict(self, plan: Plan, costs: ModelCosts, statistics: Statistics) -> Prediction:
        if plan.draft_size == ADAPTIVE:
            return statistics.adaptive(plan, costs.target)
        accepted_length, target = self.accepted_length(plan, statistics), costs.target
        times_ms = target.draft(plan.iterations), target.verify(plan.draft_size)
        return Prediction(accepted_length, plan.draft_size, 0.0, *times_ms)
