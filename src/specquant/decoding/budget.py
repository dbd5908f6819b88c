"""How large each tree should be: the tokens that it may expect, by the head's confidence, against the time it takes.

A tree's nodes are taken in the order of the head's confidence, so a smaller tree is the beginning of a larger one. The
accepted length that a tree may expect is the sum of the chances of its nodes. The time of a pass was measured by draft
size. It rises in steps: a few more rows are free until they need another tile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from specquant.errors import SpecquantError

SIZES = (8, 16, 24, 32, 48, 60)  # that may be chosen, if their passes were measured; each is a CUDA graph
# Iterations after which the host reads what they drafted, for the card waits meanwhile: on recorded trees this gained
# most of sixteen ways at 0.05 to 0.15 ms a read.
READ_AFTER = (3, 4, 6)
MEMORY = 0.9  # the weight of all earlier drafts, at each further one
FIRST_RATIO = 0.8  # of what a depth gains to what the one above it does, until drafts have shown it
TINY = 1e-6
Told = Sequence[Sequence[float]] | Sequence[np.ndarray]  # chances of the likeliest nodes, in order; their depths
FEWEST_STEPS = 8  # before there is a rate
MOST_LOST = 0.02  # the share of time that goes into trying drafts while none pays; as much may go into learning that
BELIEVED = 10.0  # drafted tokens that are as good as seen to be accepted as often as their confidence says


@dataclass(frozen=True)
class ConfidenceMap:
    """The chance that a node is accepted, by its head's confidence in the path to it: straight lines between points.

    Attributes:
        confidence: Probabilities, ascending, from 0 to 1.
        chance: At each of these confidences, never falling.
    """

    confidence: Sequence[float] = (0.0, 1.0)
    chance: Sequence[float] = (0.0, 1.0)

    def __post_init__(self):
        points = np.array(self.confidence), np.array(self.chance)
        fits = len(points[0]) == len(points[1]) >= 2 and all(((p >= 0) & (p <= 1)).all() for p in points)
        rises = all((np.diff(points[0]) > 0).tolist()) and all((np.diff(points[1]) >= 0).tolist())
        if not fits or not rises or points[0][[0, -1]].tolist() != [0, 1]:
            raise SpecquantError(
                "chances of acceptance must rise with confidence, both from 0 to 1, with as many of one as of the other"
            )

    def chances(self, confidence: np.ndarray) -> np.ndarray:
        """Of the nodes of a tree, the most confident first. The first is the root, which is accepted already."""
        chances = np.interp(confidence, self.confidence, self.chance)
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

    @property
    def sizes(self) -> list[int]:
        """Of trees, ascending, without that of the root alone."""
        return sorted(size for size in self.verify_ms if size > 1)

    def step_ms(self, size: int, iterations: int, reads: int = 0) -> float:
        """Of a whole step; without a draft, where there are no iterations."""
        draft_ms = self.draft_ms[min(iterations, len(self.draft_ms)) - 1] if iterations else 0.0
        return draft_ms + self.verify_ms[size] + self.other_ms + reads * self.read_ms

    def size(self, chances: np.ndarray, iterations: int, rate: float | None = None, reads: int = 0) -> int:
        """The best size of a tree that is drafted already.

        Args:
            chances: Of each node being accepted: first the root's, which is 1, then in the order of confidence.
            iterations: Those that it took.
            rate: Of `worth`.
            reads: How often the host read on the way.
        """
        expected = np.cumsum(chances)
        sizes = [1, *(size for size in self.sizes if size <= len(chances))]
        times_ms = np.array([self.step_ms(size, iterations, reads) for size in sizes])
        return sizes[int(np.argmax(worth(expected[np.array(sizes) - 1], times_ms, rate)))]


def worth(expected: np.ndarray, times_ms: np.ndarray, rate: float | None) -> np.ndarray:
    """By which choices are compared: the most is best.

    rate: Tokens per millisecond that time is worth, as all steps together reach it: a node pays if it gains more than
    its time would in other steps (Dinkelbach, 1967, for ratios of sums). None: each step for itself, the most tokens
    per time.
    """
    return expected / times_ms if rate is None else expected - rate * times_ms


def read_points(iterations: int, most: int | None = None) -> list[int]:
    """After how many iterations the host reads what was drafted so far.

    Args:
        iterations: Those that a draft may have, of which the last is such a point.
        most: Fewer, where there is no room for as many.

    Returns:
        Ascending numbers. A draft with room for fewer ends at one of the same numbers, unless all are too large.
    """
    points = [*(point for point in READ_AFTER if point < iterations), iterations]
    most = iterations if most is None else most
    return [point for point in points if point <= most] or [most]


class Budget:
    """Chooses the drafts of one drafter, step by step, by `Prices`.

    Whether a step has a draft at all depends on what earlier drafts were worth. How many iterations and nodes a draft
    gets depends on its own confidence, which the host reads now and then (`read_points`). The calibrated chances are
    multiplied by what was accepted of the latest drafts over what was expected (`learn`): a head may be too sure of a
    text.

    Args:
        prices: What steps cost.
        top_k: Of the drafter: it says which level a proposal is of.
    """

    def __init__(self, prices: Prices, top_k: int):
        self.prices, self.top_k = prices, top_k
        self.largest = max(prices.sizes, default=1)
        self._sums, self._steps = np.zeros(2), 0  # expected tokens and milliseconds of all steps
        self._drafts = np.zeros(2)  # of those with a draft, the latest ones most
        self._ratios = [FIRST_RATIO] * (len(prices.draft_ms) + 1)  # by depth, what the next one gains over its frontier
        self._waits, self._latest_ms = 0, 0.0  # steps since a draft, and what that took
        self._accepted = np.full(2, BELIEVED)  # drafted tokens that were, and that were expected, the latest ones most
        self._expected = 0.0  # of the latest draft
        self._read_after: list[int] = []  # iterations of the draft that is being made
        self._tries = False  # whether the draft is one that is tried while none pays: as calibrated, to learn from it

    @property
    def rate(self) -> float | None:
        """Tokens per millisecond so far, by chances and prices; None at first."""
        return self._sums[0] / self._sums[1] if self._steps >= FEWEST_STEPS else None

    def drafts(self) -> bool:
        """Whether the next step has a draft. While none pays, one is tried now and then."""
        plain_ms = self.prices.step_ms(1, 0)
        self._tries = False
        if not self._drafts[1] or self._drafts[0] / self._drafts[1] > 1 / plain_ms:
            return True
        if self._waits * plain_ms < self._latest_ms / MOST_LOST:
            self._waits += 1
            self._count(1.0, plain_ms)
            return False
        self._tries = True
        return True

    def learn(self, accepted: int) -> None:
        """Take into account how many tokens of the latest draft were accepted; without a new draft, nothing changes.

        A draft that was tried while none paid counts by what was accepted of it, so that drafts go on once they pay.
        """
        if self._expected:
            self._accepted = MEMORY * self._accepted + (accepted, self._expected)
            if self._tries:
                self._drafts[0] += accepted - self._expected
        self._expected = 0.0

    def _chances(self, told: Told) -> np.ndarray:
        """The chance of each node, by its confidence and by what was accepted of earlier drafts."""
        chances = np.array(told[0])
        if not self._tries:
            chances[1:] = np.minimum(chances[1:] * self._accepted[0] / self._accepted[1], 1.0)
        return chances

    def _count(self, expected: float, time_ms: float) -> None:
        self._sums += (expected, time_ms)
        self._steps += 1

    def read(self, scores: np.ndarray) -> Told:
        """What scores say: log-probabilities of the paths to all proposals, the root's and then level by level."""
        likeliest = np.argsort(-scores, kind="stable")[: self.largest]
        k = self.top_k
        depths = np.where(likeliest > k, 2 + (likeliest - 1 - k) // (k * k), likeliest > 0)
        return [self.prices.confidence_map.chances(np.exp(scores[likeliest])), depths]

    def goes_on(self, told: Told, iterations: int, then: int) -> bool:
        """Whether further iterations pay. To be asked once after each `read` of a draft.

        Args:
            told: What they drafted (`read`).
            iterations: Their number.
            then: Their number at the next read; where it is none more, or not priced, they do not.
        """
        chances, depths = self._chances(told), np.array(told[1])
        first = self._read_after[-1] if self._read_after else 1
        self._read_after.append(iterations)
        levels = [self._frontier(chances, depths, depth) for depth in range(first, iterations + 1)]
        for depth, (above, below) in enumerate(pairwise(levels), start=first):
            self._ratios[depth] += (1 - MEMORY) * (below / max(above, TINY) - self._ratios[depth])
        if not iterations < then <= len(self.prices.draft_ms):
            return False
        gain = levels[-1] * float(np.cumprod(self._ratios[iterations:then]).sum())
        more_ms = self.prices.draft_ms[then - 1] - self.prices.draft_ms[iterations - 1] + self.prices.read_ms
        rate = self.rate
        if rate is None:
            return gain > more_ms * chances.sum() / self.prices.step_ms(self.largest, iterations)
        return gain > rate * more_ms

    def _frontier(self, chances: np.ndarray, depths: np.ndarray, depth: int) -> float:
        """The chances of the nodes of a depth that were followed, together."""
        return float(chances[depths == depth][: self.top_k].sum())

    def size(self, told: Told, iterations: int) -> int:
        """The size of the tree that was just drafted; arguments are those of `goes_on`."""
        chances, reads = self._chances(told), len(self._read_after)
        size = self.prices.size(chances, iterations, self.rate, reads)
        spent = chances[:size].sum(), self.prices.step_ms(size, iterations, reads)
        self._count(*spent)
        self._waits, self._latest_ms, self._read_after = 0, spent[1], []
        self._expected = float(np.sum(told[0][1:size]))
        self._drafts = MEMORY * self._drafts + spent
        return size
