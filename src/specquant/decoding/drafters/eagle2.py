"""EAGLE-2 drafting: a dynamic tree from a one-layer head (arXiv 2406.16858)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from specquant.decoding.acceptance import AcceptanceRule
from specquant.decoding.budget import Budget, Way
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
    it begins with, captured when it is first needed, and the host waits for nothing.
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
        self._graphs: dict[tuple[int, int], CapturedDraft] | None = None
        self._growing: Growing | None = None
        if graphs.capturable(head):
            self._graphs, self._pool = {}, torch.cuda.graph_pool_handle()

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        self.tokens, self.known = [], 0
        self.cache.truncate(0)
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
            self.budget.learn(len(tokens) - 1)  # the last one is the model's own
        self.tokens[length:] = tokens
        self.known = min(self.known, length)
        self.features[self.known : self.known + len(features)] = self.head.known(features)
        self.known += len(features)
        # Row t holds token t + 1; and the last confirmed row always runs again, for its output.
        self.cache.truncate(max(min(length - 1, len(self.tokens) - 2), 0))

    @torch.inference_mode()
    def propose(self, limit: int) -> DraftTree:
        iterations = min(self.iterations, limit)
        # After the level above accepted a whole draft, the model has yet to run: the last feature is not known.
        if iterations < 1 or self.draft_size == 1 or self.known < len(self.tokens) - 1:
            return self._only_root()
        way = self.budget.begin(iterations) if self.budget is not None else None
        if way is not None and not way.points:
            return self._only_root()
        if self.known - self.cache.length > max(MOST_FIRST_ROWS, self.iterations + 2):
            self._catch_up()  # another drafter was asked for a while
        length = self.cache.length
        tokens = self.tokens[length + 1 :]
        if self.budget is not None and way is not None:
            return self._adaptive(tokens, way, self.budget)
        if self._graphs is None:
            return _as_draft(self.draft(on_device(tokens, self.head.device), self.cache, iterations))
        key = len(tokens), iterations
        if key not in self._graphs:
            self._graphs[key] = CapturedDraft(self, *key, self._pool)
        tree = self._graphs[key].run(tokens, length)
        self.cache.length = self.known
        return tree

    def _adaptive(self, tokens: list[int], way: Way, budget: Budget) -> DraftTree:
        """A tree of the size that its budget chose, or with as many iterations and nodes as that chooses by what was
        drafted, for which the host waits now and then."""
        if self._growing is None:
            self._growing = Growing(self) if self._graphs is None else CapturedGrowing(self, self._pool)
        growing, size = self._growing, way.size
        growing.begin(tokens)
        for place, iterations in enumerate(way.points, start=1):
            growing.grow(way.points[:place])
            if way.size is None:
                told = budget.read(growing.scores(iterations))
                if not budget.goes_on(told, iterations, (*way.points, 0)[place]):
                    size = budget.size(told, iterations)
                    break
        self.cache.length = self.known
        self.latest_iterations = iterations
        assert size is not None  # behind the last point none goes on
        return growing.tree(iterations, size)

    def _only_root(self) -> DraftTree:
        return DraftTree.sequence(on_device(self.tokens[-1:], self.head.device))

    def draft(self, tokens: torch.Tensor, cache: KVCache | graphs.CapturedCache, iterations: int) -> Tree:
        """The tree under the last of `tokens`, int64 [n]: the confirmed tokens whose rows the cache lacks, which they
        are confirmed in. Nothing here depends on where the draft begins, but through the cache's length."""
        growth = self.root(tokens, cache, iterations)
        for level in range(iterations):
            growth = self.grow(growth, level, cache)
        return rerank(growth.proposals, self.draft_size)

    def root(self, tokens: torch.Tensor, cache: KVCache | graphs.CapturedCache, iterations: int) -> "Growth":
        """Before the first of so many iterations at most; `tokens` as for `draft`."""
        outputs, positions = self._run_confirmed(tokens, cache)
        outputs, positions = outputs[-1:], positions[-1:].repeat(self.top_k)
        proposals = Proposals.under(tokens[-1:], self._nodes(iterations), compute_dtype(outputs))
        return Growth(outputs, positions, proposals, Frontier.root(proposals))

    def grow(self, growth: "Growth", level: int, cache: KVCache | graphs.CapturedCache) -> "Growth":
        """One iteration more; `level` were made."""
        outputs, positions, proposals, frontier = growth
        if level:
            tokens, features = self._readable(frontier.tokens), outputs[frontier.parents]
            outputs = self.head(tokens, features, positions + level, cache, frontier.mask)
        log_p, children = self.head.likeliest(outputs, self.top_k, self.known_tokens)
        frontier = expand(proposals, self._nodes(level), frontier, log_p, children)
        return Growth(outputs, positions, proposals, frontier)

    def drafted(self, growth: "Growth", iterations: int) -> Proposals:
        """The proposals of so many iterations."""
        return Proposals(*(part[: self._nodes(iterations)] for part in growth.proposals))

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

    def __init__(self, drafter: EagleDrafter, rows: int, iterations: int, pool: tuple[int, int]):
        # The length, then the tokens: the device waits for one copy while the host starts a draft.
        self.inputs = torch.zeros(1 + rows, dtype=torch.int64, device=drafter.head.device)
        cache, tokens = graphs.CapturedCache(drafter.cache, self.inputs[:1]), self.inputs[1:]
        self.replay, self.tree = graphs.capture(lambda: drafter.draft(tokens, cache, iterations), pool)

    def run(self, tokens: list[int], length: int) -> DraftTree:
        """The tree behind `length` rows in the head's cache."""
        self.inputs.copy_(torch.tensor([length, *tokens]), non_blocking=True)
        self.replay()
        return _as_draft(Tree(*(part.clone() for part in self.tree)))  # the next draft writes to the same place


class Growth(NamedTuple):
    """A draft between two iterations.

    outputs: of the head, [rows, hidden]. positions: int64 [top_k], of the root.
    """

    outputs: torch.Tensor
    positions: torch.Tensor
    proposals: Proposals
    frontier: Frontier

    def flat(self) -> tuple[torch.Tensor, ...]:
        return (self.outputs, self.positions, *self.proposals, *self.frontier)

    @classmethod
    def of(cls, parts: Sequence[torch.Tensor]) -> "Growth":
        return cls(parts[0], parts[1], Proposals(*parts[2:5]), Frontier(*parts[5:10]))


class Growing:
    """A draft that is ended once it is known how far it goes: `begin`, then `grow` some times, then `tree`."""

    growth: Growth

    def __init__(self, drafter: EagleDrafter):
        self.drafter = drafter

    def begin(self, tokens: list[int]) -> None:
        """The confirmed tokens that the head's cache lacks."""
        drafter = self.drafter
        self.growth = drafter.root(on_device(tokens, drafter.head.device), drafter.cache, drafter.iterations)

    def grow(self, points: Sequence[int]) -> None:
        """Iterations up to the last of some points, at the others of which it was before."""
        self.growth = self._grown(self.growth, points, self.drafter.cache)

    def _grown(self, growth: Growth, points: Sequence[int], cache: KVCache | graphs.CapturedCache) -> Growth:
        for level in range(*(0, *points)[-2:]):
            growth = self.drafter.grow(growth, level, cache)
        return growth

    def scores(self, iterations: int) -> np.ndarray:
        """Those of the proposals so far, on the host, which waits for them."""
        return self.drafter.drafted(self.growth, iterations).scores.numpy(force=True)

    def tree(self, iterations: int, size: int) -> DraftTree:
        return _as_draft(rerank(self.drafter.drafted(self.growth, iterations), size))


class CapturedGrowing(Growing):
    """The same by CUDA graphs, captured when they are first needed: one for each number of tokens to begin with, for
    the iterations up to each point, and for each size of a tree. All begin at the same place in memory, so a new size
    needs one small graph."""

    def __init__(self, drafter: EagleDrafter, pool: tuple[int, int]):
        super().__init__(drafter)
        device, most = drafter.head.device, max(MOST_FIRST_ROWS, drafter.iterations + 2)
        self.pool = pool
        self.inputs = torch.zeros(1 + most, dtype=torch.int64, device=device)  # the length, then the tokens
        self.cache = graphs.CapturedCache(drafter.cache, self.inputs[:1])
        first = drafter.root(self.inputs[1:2], self.cache, drafter.iterations)
        proposals = Proposals(*(part.clone() for part in first.proposals))
        self.first = Growth(first.outputs.clone(), first.positions.clone(), proposals, Frontier.root(proposals))
        self.roots: dict[int, Callable[[], None]] = {}
        self.parts: dict[tuple[int, ...], tuple[Callable[[], None], Growth]] = {}
        self.trees: dict[tuple[int, int], tuple[Callable[[], None], Tree]] = {}
        self.on_host: torch.Tensor | None = None
        if device.type == "cuda":  # a copy to such memory needs no further one, and an event waits for no other work
            self.on_host = torch.empty_like(proposals.scores, device="cpu", pin_memory=True)
            self.copied = torch.cuda.Event()

    def begin(self, tokens: list[int]) -> None:
        rows = len(tokens)
        self._fill(tokens)
        if rows not in self.roots:
            self.roots[rows], _ = graphs.capture(partial(self._root, rows), self.pool)
            self._fill(tokens)  # capturing confirmed the tokens, too
        self.roots[rows]()
        self.growth = self.first

    def _fill(self, tokens: list[int]) -> None:
        inputs = torch.tensor([self.drafter.cache.length, *tokens])
        self.inputs[: len(inputs)].copy_(inputs, non_blocking=True)

    def _root(self, rows: int) -> tuple[torch.Tensor, ...]:
        outputs, positions = self.drafter._run_confirmed(self.inputs[1 : 1 + rows], self.cache)
        self.first.outputs.copy_(outputs[-1:])
        self.first.positions.copy_(positions[-1:].expand(self.drafter.top_k))
        self.first.proposals.tokens[:1].copy_(self.inputs[rows : rows + 1])
        return self.first.flat()

    def grow(self, points: Sequence[int]) -> None:
        key = tuple(points)
        if key not in self.parts:
            grown = partial(self._grown, self.growth, points, self.cache)
            replay, parts = graphs.capture(lambda: grown().flat(), self.pool)
            self.parts[key] = replay, Growth.of(parts)
        replay, self.growth = self.parts[key]
        replay()

    def scores(self, iterations: int) -> np.ndarray:
        if self.on_host is None:
            return super().scores(iterations)
        scores = self.drafter.drafted(self.growth, iterations).scores
        on_host = self.on_host[: len(scores)].copy_(scores, non_blocking=True)
        self.copied.record()
        self.copied.synchronize()
        return on_host.numpy()

    def tree(self, iterations: int, size: int) -> DraftTree:
        if (iterations, size) not in self.trees:
            drafted = self.drafter.drafted(self.first, iterations)
            replay, parts = graphs.capture(lambda: rerank(drafted, size), self.pool)
            self.trees[iterations, size] = replay, Tree(*parts)
        replay, tree = self.trees[iterations, size]
        replay()
        return _as_draft(Tree(*(part.clone() for part in tree)))


def _as_draft(tree: Tree) -> DraftTree:
    return DraftTree(tree.tokens, tree.parents, tree.depths, tree.ancestors, scores=tree.scores)


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
