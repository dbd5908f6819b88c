"""What confidence is worth (confidences.csv): the chance of acceptance by it, and what trees of any size would gain."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import isotonic_regression

from specquant.decoding.budget import SIZES, Budget, Calibration, Prices
from specquant.errors import SpecquantError
from specquant.planning.costs import LevelCosts

RECORDED = "data/recorded/cpu/confidences.csv"
POINTS = 24  # of a calibration
TOP_K = 10
MOST_ITERATIONS = 6


@dataclass(frozen=True, eq=False)
class Trace:
    """One step's tree, its nodes in the order of confidence, the root first.

    Attributes:
        confidence: Of the path to each.
        parents: Each lower than its own place; the root's is -1.
        accepted: Places of the nodes that were accepted, the root's among them.
    """

    confidence: np.ndarray
    parents: tuple[int, ...]
    accepted: tuple[int, ...]

    @cached_property
    def depths(self) -> np.ndarray:
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return np.array(depths)

    @cache  # noqa: B019  (traces live as long as what is planned with them)
    def within(self, iterations: int) -> "Trace":
        """What fewer iterations would have drafted of it."""
        kept = np.flatnonzero(self.depths <= iterations)
        place = {-1: -1} | {int(row): new for new, row in enumerate(kept)}
        return Trace(
            self.confidence[kept],
            tuple(place[self.parents[row]] for row in kept),
            tuple(place[row] for row in self.accepted if row in place),
        )

    def accepted_length(self, size: int) -> int:
        """Of its first nodes, with the token that the model adds."""
        return sum(row < size for row in self.accepted)


def read_traces(table: pd.DataFrame, which: str = "target") -> list[list[Trace]]:
    """The traces of one model's texts. Raises SpecquantError where a row holds no tree."""
    rows = table[table.model.str.endswith(which)]
    return [[_trace(row) for row in text.itertuples()] for _, text in rows.groupby("id", sort=False)]


def _trace(row) -> Trace:
    try:
        confidence = np.array([float(word) for word in str(row.confidence).split()])
        parents, accepted = (tuple(int(word) for word in str(text).split()) for text in (row.parents, row.accepted))
    except ValueError:
        confidence, parents, accepted = np.array([]), (), ()
    in_order = all(-1 < parent < place for place, parent in enumerate(parents) if place)
    if not (len(parents) == len(confidence) and parents[:1] == (-1,) and in_order and accepted[:1] == (0,)) or (
        max(accepted) >= len(parents) or not ((confidence >= 0) & (confidence <= 1)).all()
    ):
        raise SpecquantError(
            f"step {row.step} of {row.id} in confidences.csv is no tree in the order of confidence: record it again"
        )
    return Trace(confidence, parents, accepted)


def fit_calibration(texts: Iterable[Sequence[Trace]]) -> Calibration:
    """The chance of acceptance by confidence: the best map of all that never fall (isotonic regression).

    Raises SpecquantError where there are no nodes to fit it to.
    """
    traces = [trace for text in texts for trace in text]
    confidence = np.concatenate([trace.confidence[1:] for trace in traces]) if traces else np.array([])
    if not len(confidence):
        raise SpecquantError("chances of acceptance cannot be fitted: there are no trees that have drafts")
    accepted = np.concatenate([np.isin(np.arange(1, len(t.parents)), t.accepted) for t in traces]).astype(float)
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, POINTS) if len(part)]
    x = np.array([confidence[part].mean() for part in parts])
    weights = np.array([len(part) for part in parts], dtype=float)
    y = isotonic_regression([accepted[part].mean() for part in parts], weights=weights).x
    inside = np.flatnonzero((x > 1e-6) & (x < 1 - 1e-6) & (np.diff(x, prepend=-1.0) > 0))
    ends = (0.0, float(y[0]) if len(y) else 0.0), (1.0, float(y[-1]))
    points = [ends[0], *((float(x[i]), float(y[i])) for i in inside), ends[1]]
    return Calibration(*map(tuple, zip(*points, strict=True)))


def prices_of(costs: LevelCosts, calibration: Calibration, most_iterations: int = MOST_ITERATIONS) -> Prices:
    """What one model's steps cost, for the sizes of `SIZES` that were measured.

    Raises SpecquantError where no draft was measured.
    """
    if not len(costs.draft_ms):
        raise SpecquantError("the price of a tree needs the time of a draft: none was measured of this model's head")
    largest = costs.verify_ms.index.max()
    verify_ms = {size: costs.verify(size) for size in (1, *SIZES) if size <= largest}
    draft_ms = [max(0.0, costs.draft(count)) for count in range(1, most_iterations + 1)]
    return Prices(verify_ms, draft_ms, costs.other_ms, calibration)


class Simulated(NamedTuple):
    """Sums over all steps: what they took, and their means.

    tokens_per_ms: of all texts. accepted_length, draft_size, iterations, draft_ms, verify_ms: of a step.
    """

    tokens_per_ms: float
    accepted_length: float
    draft_size: float
    iterations: float
    draft_ms: float
    verify_ms: float


def simulate(texts: Iterable[Sequence[Trace]], prices: Prices, tree: tuple[int, int] | None = None) -> Simulated:
    """What decoding would gain on recorded trees under prices.

    The traces are those of static trees. So a step that accepted fewer tokens goes on at the next recorded tree, as one
    that accepted more does: acceptance depends on the text, hardly on the token.

    Args:
        texts: Traces of each text.
        prices: What steps cost.
        tree: Nodes and iterations of static trees; None where a `Budget` chooses.
    """
    tokens, steps, sizes, counts, drafts, passes = 0, 0, 0, 0, 0.0, 0.0
    for text in texts:
        budget = Budget(prices, TOP_K, "cpu")
        for trace in text:
            most = min(MOST_ITERATIONS, len(prices.draft_ms))
            iterations = tree[1] if tree else budget.iterations(most)
            drafted, size = trace.within(iterations), 1
            if tree:
                size = tree[0]
            elif iterations:
                chances = prices.calibration.chances(drafted.confidence)
                size = budget.size(torch.tensor(np.stack((chances, drafted.depths))), iterations)
            tokens += drafted.accepted_length(size)
            steps, sizes, counts = steps + 1, sizes + size, counts + iterations
            drafts += prices.step_ms(size, iterations) - prices.step_ms(size, 0)
            passes += prices.verify_ms[size]
    if not steps:
        raise SpecquantError("there are no recorded trees to simulate with: record them (specquant bench confidences)")
    time_ms = drafts + passes + steps * prices.other_ms
    return Simulated(tokens / time_ms, *(total / steps for total in (tokens, sizes, counts, drafts, passes)))


def with_rate(texts: Sequence[Sequence[Trace]], prices: Prices, rounds: int = 3) -> Prices:
    """The same prices with what time is worth: the tokens per time that decoding by them reaches.

    A step's own tokens per time are no measure: where little can be won a node more looks cheap, though the next step
    would use its time better (Dinkelbach, 1967, for ratios of sums)."""
    best, reached = prices, simulate(texts, prices).tokens_per_ms
    for _ in range(rounds):
        tried = replace(prices, rate=reached)
        now = simulate(texts, tried).tokens_per_ms
        if now <= reached:
            break
        best, reached = tried, now
    return best


def best_static(texts: Sequence[Sequence[Trace]], prices: Prices) -> tuple[tuple[int, int], Simulated]:
    """The fastest trees of one size, or none at all (1, 0), and what they reach."""
    every = [(size, count) for size in prices.sizes for count in range(1, len(prices.draft_ms) + 1)]
    told = {tree: simulate(texts, prices, tree) for tree in [(1, 0), *every]}
    best = max(told, key=lambda tree: told[tree].tokens_per_ms)
    return best, told[best]


def predicted_gains(texts: Sequence[Sequence[Trace]], costs: Mapping[str, LevelCosts]) -> pd.DataFrame:
    """What adaptive draft sizes gain over the best static ones, by what `costs` are of; half of the texts calibrate,
    the others are judged."""
    calibration = fit_calibration(texts[::2])
    rows = {}
    for name, of_model in costs.items():
        prices = prices_of(of_model, calibration)
        chosen = with_rate(texts[::2], prices)
        tree, static = best_static(texts[1::2], prices)
        adaptive = simulate(texts[1::2], chosen)
        plain = simulate(texts[1::2], prices, (1, 0)).tokens_per_ms
        rows[name] = {
            "nodes": tree[0],
            "iterations": tree[1],
            "static_speedup": static.tokens_per_ms / plain,
            "adaptive_speedup": adaptive.tokens_per_ms / plain,
            "gain": adaptive.tokens_per_ms / static.tokens_per_ms,
            "mean_draft_size": adaptive.draft_size,
            "mean_iterations": adaptive.iterations,
        }
    return pd.DataFrame(rows).T
