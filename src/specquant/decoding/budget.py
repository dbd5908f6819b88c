"""How large each tree should be: the tokens that it may expect, by what earlier ones said, against the time it takes.

A tree's nodes are taken in the order of the head's confidence, so a smaller tree is the beginning of a larger one. The
accepted length that a tree may expect is the sum of the chances of its nodes. The time of a pass was measured by draft
size. It rises in steps: a few more rows are free until they need another tile.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from specquant.errors import SpecquantError

SIZES = (8, 16, 24, 32, 48, 60)  # that may be chosen, if their passes were measured; each is a CUDA graph
MEMORY = 0.9  # the weight of all earlier drafts, at each further one, in what was accepted of them
MOST_DEPTH = 64  # by which chances differ
BETTER = 1.01  # a way must be faster by so much to be taken instead of the present one: new sizes need new graphs
# The share of time that whole trees may cost; and while none pays, for then a text that drafts well gains much.
MOST_LOST, MOST_TRIED = 0.002, 0.015
LOOK_MS = 0.5  # what a whole tree counts as at least: the host looks at it, and it may need graphs of its own
BELIEVED = 10.0  # a budget begins as if so many drafted tokens had been accepted as often as their confidence says


class Drafted(NamedTuple):
    """A recorded tree. chances, depths: of its nodes, the likeliest first; accepted: 1 where a node was, else 0."""

    chances: np.ndarray
    depths: np.ndarray
    accepted: np.ndarray


@dataclass(frozen=True)
class ConfidenceMap:
    """The chance that a node is accepted, by its head's confidence in the path to it: straight lines between points.

    Attributes:
        confidence: Probabilities, ascending, from 0 to 1.
        chance: At each of these confidences, never falling.
        by_depth: What chances are multiplied by, by the depth of a node from 1 on; the last one also serves all deeper
            ones. A path of many likely tokens is accepted more often than a single token of the same confidence.
        trees: That were recorded, for a budget to begin with.
    """

    confidence: Sequence[float] = (0.0, 1.0)
    chance: Sequence[float] = (0.0, 1.0)
    by_depth: Sequence[float] = (1.0,)
    trees: Sequence[Drafted] = field(default=(), compare=False, repr=False)

    def __post_init__(self):
        points = np.array(self.confidence), np.array(self.chance)
        fits = len(points[0]) == len(points[1]) >= 2 and all(((p >= 0) & (p <= 1)).all() for p in points)
        rises = all((np.diff(points[0]) > 0).tolist()) and all((np.diff(points[1]) >= 0).tolist())
        if not fits or not rises or points[0][[0, -1]].tolist() != [0, 1]:
            raise SpecquantError(
                "chances of acceptance must rise with confidence, both from 0 to 1, with as many of one as of the other"
            )

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        factors = [1.0, *self.by_depth, *[self.by_depth[-1]] * (MOST_DEPTH - len(self.by_depth))]
        return np.array(self.confidence), np.array(self.chance), np.array(factors)

    def chances(self, confidence: np.ndarray, depths: np.ndarray) -> np.ndarray:
        """Of the nodes of a tree, the most confident first. The first is the root, which is accepted already."""
        x, y, factors = self._tables
        chances = np.interp(confidence, x, y)
        chances *= factors[np.minimum(depths, MOST_DEPTH)]
        np.minimum(chances, 1.0, out=chances)
        chances[0] = 1.0
        return chances


@dataclass(frozen=True)
class Prices:
    """What steps cost, and what confidence is worth.

    Attributes:
        verify_ms: Of a pass, by draft size, of which 1 must be one. Only these sizes are chosen.
        draft_ms: Of a draft, by iterations, from 1 on.
        other_ms: Of a step's rest.
        confidence_map: Of the head that drafts.
    """

    verify_ms: Mapping[int, float]
    draft_ms: Sequence[float]
    other_ms: float = 0.0
    confidence_map: ConfidenceMap = ConfidenceMap()

    def __post_init__(self):
        times = np.array([*self.verify_ms.values(), *self.draft_ms, self.other_ms], dtype=float)
        if 1 not in self.verify_ms or not self.draft_ms or not (np.isfinite(times).all() and (times >= 0).all()):
            raise SpecquantError(
                "the price of a draft needs times of a pass over one token and of a draft of one iteration, from 0 on"
            )

    @cached_property
    def sizes(self) -> list[int]:
        """Of trees, ascending, without that of the root alone."""
        return sorted(size for size in self.verify_ms if size > 1)

    def step_ms(self, size: int, iterations: int) -> float:
        """Of a whole step; without a draft, where there are no iterations."""
        draft_ms = self.draft_ms[min(iterations, len(self.draft_ms)) - 1] if iterations else 0.0
        return draft_ms + self.verify_ms[size] + self.other_ms


class Way(NamedTuple):
    """How a step drafts: nodes of the tree, the root counted, and iterations."""

    size: int
    iterations: int


PLAIN = Way(1, 0)  # one token after the other


class Budget:
    """Chooses the drafts of one drafter, step by step, by `Prices`.

    A step drafts a tree of some size by some iterations, or not at all (`Way`). The way with the best rate is taken:
    tokens that it may expect over the time that it takes. Whole trees say what it may expect. They are drafted as deep
    as any, so they hold what each way would have drafted of them. A budget begins with recorded ones, of which it is
    known what was accepted. Now and then a step drafts another one, and the host looks at its confidence once it knows
    what was accepted. That is so seldom that it costs little. None is forgotten: a few recent trees say less of the
    next ones than many do.

    This expectation is multiplied by what was accepted of the latest drafts over what was expected of them: texts
    differ, and a head may be too sure of one.

    The host chooses while a GPU drafts, so that no GPU waits for it: the way of the next step, by what was accepted of
    all drafts before the present one. A step is `begin`, `choose` and `learn`, in this order.

    Args:
        prices: What steps cost.
        top_k: Of the drafter: it says how large a tree can be.
    """

    def __init__(self, prices: Prices, top_k: int):
        self.prices = prices
        self.ways = [PLAIN, *_worth_trying(prices, top_k)]  # the last ones are the deepest
        self._places = {way: place for place, way in enumerate(self.ways)}
        self._sizes, self._iterations = np.array(self.ways).T
        self._times_ms = np.array([prices.step_ms(*way) for way in self.ways])
        self.largest = int(self._sizes.max())
        self.best = self.way = PLAIN  # of all, so far; and that of the latest step
        self.looks = False  # whether the latest step drafts a whole tree, which `learn` is to be told
        self._trees, self._tokens = 0, np.zeros(len(self.ways))  # whole ones, and what each way would accept of them
        self._accepted = self._expected = BELIEVED  # drafted tokens, the latest ones most
        # The next whole tree, what it loses, what a step adds to what such trees may lose, and how much that is.
        self._whole, self._lost_ms, self._allowed_ms, self._spare_ms = self.ways[-1], 0.0, 0.0, 0.0
        self._latest: tuple[int, Way, tuple[np.ndarray, np.ndarray] | None] | None = None  # what `choose` has to learn
        for _, depths, accepted in prices.confidence_map.trees:
            self._weigh(depths, accepted)
        self._choose()

    @property
    def correction(self) -> float:
        """Accepted tokens for each that whole trees let expect."""
        return self._accepted / self._expected

    def start(self) -> None:
        """Begin a text. A step of the last one that was broken off teaches nothing."""
        self.way = PLAIN
        self._choose()

    def begin(self, most: int) -> Way:
        """How this step drafts. To be asked once a step.

        Args:
            most: Iterations for which there is room.
        """
        self._spare_ms += self._allowed_ms
        self.looks = 0 < self._whole.iterations <= most and self._lost_ms <= self._spare_ms
        if self.looks:
            self._spare_ms -= self._lost_ms
            if not self._trees:
                self._lost_ms = math.inf  # one is enough, until it is known
        way = self._whole if self.looks else self.best
        self.way = Way(way.size, min(way.iterations, most))
        return self.way

    def learn(self, accepted: int, confidence: np.ndarray | None = None, depths: np.ndarray | None = None) -> None:
        """Take note of how many tokens of the latest draft were accepted. To be told once a step.

        Args:
            accepted: Without the one that the model adds.
            confidence: Of the latest draft's likeliest nodes, the most confident first, if it is a whole tree.
            depths: Of the same.
        """
        if self.way != PLAIN:
            self._latest = accepted, self.way, None if confidence is None or depths is None else (confidence, depths)
        self.way = PLAIN

    def choose(self) -> None:
        """Find the best way for the next step, by what the latest `learn` was told. To be called once a step, behind
        its draft."""
        if self._latest is None:
            return
        (accepted, way, said), self._latest = self._latest, None
        place, expected = self._places.get(way), 0.0  # a step with little room may draft in a way that is none
        if said is not None and place is not None:
            confidence, depths = said
            tokens = self._weigh(depths, self.prices.confidence_map.chances(confidence, depths))
            expected = float(tokens[place]) - 1
        elif place is not None and self._trees:
            expected = float(self._tokens[place]) / self._trees - 1
        if expected:
            self._accepted = MEMORY * self._accepted + accepted
            self._expected = MEMORY * self._expected + expected
        self._choose()

    def _choose(self) -> None:
        """Find the best way by all whole trees, the next whole tree, what that loses, and what each step may lose.

        Where none is known, the first is free.
        """
        whole, self._lost_ms = len(self.ways) - 1, 0.0
        if self._trees:
            expected = 1 + self.correction * (self._tokens / self._trees - 1)
            rates = expected / self._times_ms
            fastest, now = int(rates.argmax()), self._places[self.best]
            if rates[fastest] > BETTER * rates[now]:
                self.best, now = self.ways[fastest], fastest
            deep = Way(self.best.size, self.ways[-1].iterations)  # as large, where that pays
            whole = self._places.get(deep, whole)
            self._lost_ms = max(LOOK_MS, float(self._times_ms[whole] - expected[whole] / rates[now]))
        self._whole = self.ways[whole]
        share = MOST_TRIED if self.best == PLAIN else MOST_LOST
        self._allowed_ms = share * float(self._times_ms[self._places[self.best]])

    def _weigh(self, depths: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Count what each way would accept of a whole tree, and give it; counts: of each node, its chance, or what is
        known to be accepted."""
        within = depths <= self._iterations[:, None]
        tokens = (within & (within.cumsum(axis=1) <= self._sizes[:, None])) @ counts
        self._trees += 1
        self._tokens += tokens
        return tokens


def _worth_trying(prices: Prices, top_k: int) -> Iterator[Way]:
    """Ways that are faster than decoding one by one where all is accepted: a token an iteration."""
    plain_ms = prices.step_ms(*PLAIN)
    for iterations in range(1, len(prices.draft_ms) + 1):
        largest = 1 + top_k + (iterations - 1) * top_k**2
        for size in prices.sizes:
            if size <= largest and prices.step_ms(size, iterations) < min(iterations + 1, size) * plain_ms:
                yield Way(size, iterations)
