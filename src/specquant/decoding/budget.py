"""How large each tree should be: the tokens that it may expect, by the head's confidence, against the time it takes.

A tree's nodes are taken in the order of the head's confidence, so a smaller tree is the beginning of a larger one. The
accepted length that a tree may expect is the sum of the chances of its nodes. The time of a pass was measured by draft
size. It rises in steps: a few more rows are free until they need another tile.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from specquant.errors import SpecquantError

SIZES = (8, 16, 24, 32, 48, 60)  # that may be chosen, if their passes were measured; each is a CUDA graph
# Iterations after which the host reads what they drafted; the card waits meanwhile. Of sixteen such lists this one
# gained most in a simulation on recorded trees with reads of 0.05 to 0.15 ms, whose script was not kept.
READ_AFTER = (3, 4, 6)
MEMORY = 0.9  # the weight of all earlier drafts, at each further one, in what was accepted of them
GAINED = 0.5  # tokens that going on gains for each chance on the frontier, until whole trees have shown it
TINY = 1e-6
# Reading counts as so many times as dear when ways are compared. By the times of whole steps we estimate 0.13 ms in one
# run on an H200, and twice that or more in another, whose host was slower. Neither run was recorded.
DOUBT = 2.0
MOST_DEPTH = 64  # by which chances differ
Told = Sequence[np.ndarray]  # chances of the likeliest nodes, in order; their depths
BETTER = 1.01  # a way must be faster by so much to be taken instead of the present one: new sizes need new graphs
# The share of time that whole trees may cost; and while none pays, for then a text that drafts well gains much.
MOST_LOST, MOST_TRIED = 0.002, 0.015
BELIEVED = 10.0  # a text begins as if so many drafted tokens had been accepted as often as their confidence says


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
        read_ms: That a step takes longer for each time that the host reads what was drafted so far.
    """

    verify_ms: Mapping[int, float]
    draft_ms: Sequence[float]
    other_ms: float = 0.0
    confidence_map: ConfidenceMap = ConfidenceMap()
    read_ms: float = 0.0

    def __post_init__(self):
        times = np.array([*self.verify_ms.values(), *self.draft_ms, self.other_ms, self.read_ms], dtype=float)
        if 1 not in self.verify_ms or not self.draft_ms or not (np.isfinite(times).all() and (times >= 0).all()):
            raise SpecquantError(
                "the price of a draft needs times of a pass over one token and of a draft of one iteration, from 0 on"
            )

    @cached_property
    def sizes(self) -> list[int]:
        """Of trees, ascending, without that of the root alone."""
        return sorted(size for size in self.verify_ms if size > 1)

    @cached_property
    def _passes(self) -> tuple[np.ndarray, np.ndarray]:
        """All sizes and their times."""
        sizes = [1, *self.sizes]
        return np.array(sizes), np.array([self.verify_ms[size] for size in sizes])

    def step_ms(self, size: int, iterations: int, reads: int = 0) -> float:
        """Of a whole step; without a draft, where there are no iterations."""
        draft_ms = self.draft_ms[min(iterations, len(self.draft_ms)) - 1] if iterations else 0.0
        return draft_ms + self.verify_ms[size] + self.other_ms + reads * self.read_ms

    def size(self, chances: np.ndarray, iterations: int, rate: float | None = None, reads: int = 0) -> int:
        """The best size of a tree that is drafted already.

        Args:
            chances: Of each node being accepted: first the root's, which is 1, then in the order of confidence.
            iterations: Those that it took.
            rate: Tokens per millisecond that time is worth, as all steps together reach it: a node pays if it gains
                more than its time would in other steps (Dinkelbach, 1967, for ratios of sums). None: each step for
                itself, the most tokens per time.
            reads: How often the host read on the way.
        """
        sizes, verify_ms = self._passes
        fits = bisect_right(self.sizes, len(chances)) + 1
        expected = np.add.accumulate(chances)[sizes[:fits] - 1]
        if rate is None:
            worth = expected / (verify_ms[:fits] + (self.step_ms(1, iterations, reads) - self.verify_ms[1]))
        else:
            worth = expected - rate * verify_ms[:fits]
        return int(sizes[worth.argmax()])


def read_points(iterations: int) -> list[int]:
    """After how many iterations the host reads what was drafted so far, where a draft may have so many; the last of
    them is such a point."""
    return [*(point for point in READ_AFTER if point < iterations), iterations]


class Way(NamedTuple):
    """How a step drafts.

    points: after how many iterations the host reads what was drafted, and may end the draft; the last one ends it.
    Without points there is no draft. size: nodes of the tree. With a size nothing is read, so there is one point;
    None: the size is chosen by what was read.
    """

    points: tuple[int, ...]
    size: int | None = None

    def within(self, most: int) -> "Way":
        """The same, where there is room for no more than so many iterations: it ends at one of the same points, unless
        all are too large."""
        if not self.points or self.points[-1] <= most:
            return self
        return Way(tuple(point for point in self.points if point <= most) or (most,), self.size)


PLAIN = Way((), 1)  # one token after the other


class Budget:
    """Chooses the drafts of one drafter, step by step, by `Prices`.

    There are several ways to draft (`Way`): not at all; trees of one size, for which nothing is read; and trees whose
    iterations and nodes are chosen by their own confidence, for which the card waits while the host reads. Now and then
    a step drafts as deep as any and is read. Such a whole tree tells what each way would have drafted of it, and with
    the prices, which way has the best rate. That way is taken. Whole trees are so seldom that they cost little. Those
    that were recorded count, too, and of these it is known what was accepted. None is forgotten: a few recent trees
    say less of the next ones than many do.

    What confidence lets expect is multiplied by what was accepted of the latest drafts over what was expected
    (`learn`): a head may be too sure of a text.

    Args:
        prices: What steps cost.
        top_k: Of the drafter: it says which level a proposal is of.
    """

    def __init__(self, prices: Prices, top_k: int):
        self.prices, self.top_k = prices, top_k
        self.largest = max(prices.sizes, default=1)
        static = list(self._static())
        most = max((way.points[-1] for way in static), default=0)
        self._whole = Way((most,)) if most else PLAIN  # how a whole tree is drafted
        self.ways = list(dict.fromkeys((PLAIN, *static, Way(tuple(read_points(most))) if most else PLAIN, self._whole)))
        self._fixed = 1 + len(static)  # ways that read nothing, which come first
        self.best = self.way = PLAIN  # of all, so far; and that of the latest step
        self.rate: float | None = None  # tokens per millisecond of the best way; None before the first whole tree
        self.latest_ms = 0.0  # of the latest step, by prices
        self._trees = 0  # whole ones; and what each way would have drafted of them, and taken
        self._tokens, self._times = np.zeros((2, len(self.ways)))
        self._gains = {
            point: np.array([GAINED, 1.0]) for point in range(len(prices.draft_ms) + 1)
        }  # of going on, and frontiers
        self._accepted = np.full(2, BELIEVED)  # drafted tokens that were, and that were expected, the latest ones most
        self._expected = 0.0  # of the latest draft
        # That whole trees may cost. Where none is known, the first are free.
        self._spare_ms = 0.0 if prices.confidence_map.trees else prices.step_ms(1, 0)
        for chances, depths, accepted in prices.confidence_map.trees if most else ():
            self._weigh([chances, depths], accepted)

    def _static(self) -> Iterator[Way]:
        """Trees of one size that are faster than decoding one by one where all is accepted: a token an iteration."""
        k, plain_ms = self.top_k, self.prices.step_ms(1, 0)
        for iterations in range(1, len(self.prices.draft_ms) + 1):
            largest = 1 + k + (iterations - 1) * k * k
            for size in self.prices.sizes:
                if size <= largest and self.prices.step_ms(size, iterations) < min(iterations + 1, size) * plain_ms:
                    yield Way((iterations,), size)

    @property
    def correction(self) -> float:
        """Accepted tokens for each that confidence lets expect."""
        return self._accepted[0] / self._accepted[1]

    @property
    def _price(self) -> float | None:
        """What time is worth, in tokens that confidence lets expect. While no draft pays, one is sized by these, to
        learn from it."""
        if self.rate is None or self.best == PLAIN:
            return self.rate
        return self.rate / max(self.correction, TINY)

    def begin(self, most: int) -> Way:
        """How the next step drafts. To be asked once a step.

        Args:
            most: Iterations for which there is room.
        """
        if self._trees:
            self._choose()
        self.way = (self._whole if self._tries() else self.best).within(most)
        self._expected = 0.0
        if self.way.size is not None:
            self._spend(self.prices.step_ms(self.way.size, sum(self.way.points)))
            if self._trees and self.way == self.best:
                self._expected = self._mean(self._tokens, self.best) - 1
        return self.way

    def _choose(self) -> float:
        """Find the best way by all whole trees; its rate."""
        expected = 1 + self.correction * (self._tokens / self._trees - 1)
        rates = expected * self._trees / self._times
        fastest = int(rates.argmax())
        now = rates[self.ways.index(self.best)]
        if rates[fastest] > BETTER * now:
            self.best, now = self.ways[fastest], rates[fastest]
        self.rate = float(now)
        return self.rate

    def _mean(self, sums: np.ndarray, way: Way) -> float:
        return float(sums[self.ways.index(way)] / self._trees)

    def _tries(self) -> bool:
        """Whether the next step drafts a whole tree."""
        if not self._trees or self.rate is None:
            return True
        expected = 1 + self.correction * (self._mean(self._tokens, self._whole) - 1)
        return self._mean(self._times, self._whole) - expected / self.rate <= self._spare_ms

    def _spend(self, time_ms: float) -> None:
        self.latest_ms = time_ms
        self._spare_ms += time_ms * (MOST_TRIED if self.best == PLAIN else MOST_LOST)

    def learn(self, accepted: int) -> None:
        """Take into account how many tokens of the latest draft were accepted; without a new draft, nothing changes."""
        if self._expected:
            self._accepted = MEMORY * self._accepted + (accepted, self._expected)
        self._expected = 0.0

    def read(self, scores: np.ndarray) -> Told:
        """What scores say: log-probabilities of the paths to all proposals, the root's and then level by level."""
        likeliest = (-scores).argsort(kind="stable")[: self.largest]
        k = self.top_k
        depths = np.where(likeliest > k, 2 + (likeliest - 1 - k) // (k * k), likeliest > 0)
        return [self.prices.confidence_map.chances(np.exp(scores[likeliest]), depths), depths]

    def goes_on(self, told: Told, iterations: int, then: int) -> bool:
        """Whether further iterations pay.

        Args:
            told: What was drafted (`read`).
            iterations: Their number.
            then: Their number at the next read. There is none if it is no larger, or has no price: then they do not.
        """
        if not iterations < then <= len(self.prices.draft_ms):
            return False
        gained, frontiers = self._gains[iterations]
        gain = self._frontier(told, iterations) * gained / frontiers
        more_ms = self.prices.draft_ms[then - 1] - self.prices.draft_ms[iterations - 1] + self.prices.read_ms
        price = self._price
        if price is None:
            price = told[0].sum() / self.prices.step_ms(self.largest, iterations)
        return gain > price * more_ms

    def _frontier(self, told: Told, depth: int) -> float:
        """The chances of the nodes of a depth that were followed, together."""
        return float(told[0][told[1] == depth][: self.top_k].sum())

    def size(self, told: Told, iterations: int) -> int:
        """The size of the tree that was just drafted; arguments are those of `goes_on`."""
        size, time_ms = self._sized(told, iterations, self.way)
        self._spend(time_ms)
        self._expected = float(told[0][1:size].sum())
        if self.way == self._whole:
            self._weigh(told, told[0])
            self._spare_ms -= max(0.0, time_ms - (1 + self.correction * self._expected) / self._choose())
        return size

    def _sized(self, told: Told, iterations: int, way: Way) -> tuple[int, float]:
        reads = sum(point <= iterations for point in way.points)
        size = self.prices.size(told[0], iterations, self._price, reads)
        return size, self.prices.step_ms(size, iterations, reads)

    def _weigh(self, told: Told, counts: np.ndarray) -> None:
        """Count what each way would have drafted of a whole tree; counts: of each node, its chance, or what is known
        to be accepted."""
        depths = told[1]
        within = {n: [part[depths <= n] for part in (*told, counts)] for n in range(1, self._whole.points[-1] + 1)}
        sums = {n: np.add.accumulate(counted) for n, (_, _, counted) in within.items()}
        self._trees += 1
        for place, way in enumerate(self.ways):
            size, iterations = way.size or 0, sum(way.points)
            time_ms = self.prices.step_ms(max(size, 1), iterations)
            if way.size is None:
                size, iterations, time_ms = self._chosen(within, way)
                time_ms += (DOUBT - 1) * self.prices.read_ms * sum(point <= iterations for point in way.points)
            self._tokens[place] += sums[iterations][min(size, len(sums[iterations])) - 1] if iterations else 1.0
            self._times[place] += time_ms
            if self.rate is None and place + 1 == self._fixed:
                self.rate = float((self._tokens[: place + 1] / self._times[: place + 1]).max())

    def _chosen(self, within: Mapping[int, Told], way: Way) -> tuple[int, int, float]:
        """Nodes, iterations and time of a whole tree that is read and ended as this one would be."""
        for iterations, then in pairwise((*way.points, 0)):
            told = within[iterations]
            if then:
                frontier, gain = self._frontier(told, iterations), self._worth(within[then]) - self._worth(told)
                self._gains[iterations] += gain, frontier
            if not self.goes_on(told, iterations, then):
                break
        size, time_ms = self._sized(told, iterations, way)
        return size, iterations, time_ms

    def _worth(self, told: Told) -> float:
        """Of a pass over the best tree of a draft, in tokens that confidence lets expect."""
        size = self.prices.size(told[0], 1, self._price)
        return float(told[0][:size].sum()) - (self._price or 0.0) * self.prices.verify_ms[size]
