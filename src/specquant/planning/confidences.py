"""What confidence is worth (confidences.csv): the chance of acceptance by it, and what trees of any size would gain."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from specquant.decoding.budget import SIZES, Budget, ConfidenceMap, Drafted, Prices
from specquant.decoding.method import ADAPTIVE, Costs
from specquant.decoding.models import Models
from specquant.decoding.replay import ConfidenceTrace
from specquant.decoding.step import Step
from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.planning.costs import LevelCosts
from specquant.tables.results import read_results

RECORDED = "data/recorded/cpu/confidences.csv"
# Confidences between two edges count as one. Edges are closest near 0, where most nodes are.
EDGES = (0.002, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
TOP_K = 10
BELIEVED = 20.0  # each depth begins as if so many nodes had been accepted as often as their confidence says
MOST_ITERATIONS = 6


def in_order_of_confidence(step: Step) -> dict[str, str]:
    """A step's tree with its nodes in the order in which a smaller tree would take them, the root first: confidence,
    the probability that the head gives the path to each, parents and accepted nodes, as text."""
    tree = step.tree
    assert tree.scores is not None  # an EAGLE head's
    order = tree.scores.sort(descending=True, stable=True).indices.tolist()
    place = {row: rank for rank, row in enumerate(order)} | {-1: -1}
    parents = tree.parents.tolist()
    return {
        "confidence": " ".join(f"{p:.4g}" for p in tree.scores.exp()[order].tolist()),
        "parents": " ".join(str(place[parents[row]]) for row in order),
        "accepted_nodes": " ".join(str(place[row]) for row in (0, *step.path)),
    }


def read_confidences(table: pd.DataFrame, which: str = "target", where: str | Path = "") -> list[list[ConfidenceTrace]]:
    """The traces of one model's texts. where: the table's file. Raises SpecquantError where a row holds no tree, and
    where rows are of several models."""
    rows = table[table.model.str.endswith(which)]
    if len(models := sorted(set(rows.model))) > 1:
        raise SpecquantError(f"{where} holds trees of {' and '.join(models)}: keep the rows of one")
    return [traces_of(text, where) for _, text in rows.groupby("id", sort=False)]


def traces_of(rows: pd.DataFrame, where: str | Path = "", remedy: str = "record it again") -> list[ConfidenceTrace]:
    """Those of rows with `in_order_of_confidence`. Raises SpecquantError that names the file `where` one holds no tree,
    and says `remedy`."""
    return [_trace(row, f"{where}: " if where else "", remedy) for row in rows.reset_index().itertuples()]


def _trace(row, place: str, remedy: str) -> ConfidenceTrace:
    try:
        confidence = np.array([float(word) for word in str(row.confidence).split()])
        parents, accepted = (
            tuple(int(word) for word in str(text).split()) for text in (row.parents, row.accepted_nodes)
        )
    except ValueError:
        confidence, parents, accepted = np.array([]), (), ()
    in_order = all(-1 < parent < place for place, parent in enumerate(parents) if place)
    falls = (np.diff(confidence, prepend=1.0, append=0.0) <= 0).all()
    begins = len(parents) == len(confidence) and parents[:1] == (-1,) and accepted[:1] == (0,)
    is_path = all(0 < node < len(parents) and parents[node] == above for above, node in pairwise(accepted))
    if not (begins and in_order and falls and is_path):
        raise SpecquantError(
            f"{place}line {row.index + 2} of recorded trees holds none in the order of confidence: {remedy} (columns "
            "confidence, parents and accepted_nodes)"
        )
    return ConfidenceTrace(confidence, parents, accepted)


def fit_confidence_map(texts: Iterable[Sequence[ConfidenceTrace]]) -> ConfidenceMap:
    """The chance of acceptance by confidence: the best map of all that never fall (isotonic regression).

    Raises SpecquantError where there are no nodes to fit it to.
    """
    traces = [trace for text in texts for trace in text]
    confidence = np.concatenate([trace.confidence[1:] for trace in traces]) if traces else np.array([])
    if not len(confidence):
        raise SpecquantError("chances of acceptance cannot be fitted: there are no trees that have drafts")
    accepted = np.concatenate([np.isin(np.arange(1, len(t.parents)), t.accepted) for t in traces]).astype(float)
    group = np.digitize(confidence, EDGES)
    parts = [np.flatnonzero(group == each) for each in np.unique(group)]
    x = np.array([confidence[part].mean() for part in parts])
    weights = np.array([len(part) for part in parts], dtype=float)
    y = isotonic_regression([accepted[part].mean() for part in parts], weights=weights).x
    inside = np.flatnonzero((x > 1e-6) & (x < 1 - 1e-6) & (np.diff(x, prepend=-1.0) > 0))
    ends = (0.0, float(y[0]) if len(y) else 0.0), (1.0, float(y[-1]))
    points = [ends[0], *((float(x[i]), float(y[i])) for i in inside), ends[1]]
    return _by_depth(ConfidenceMap(*map(tuple, zip(*points, strict=True))), traces)


def _by_depth(confidence_map: ConfidenceMap, traces: Sequence[ConfidenceTrace]) -> ConfidenceMap:
    """The same with what was accepted at each depth over what it expected there, and with the trees themselves."""
    depths = np.concatenate([trace.depths for trace in traces])
    accepted = [np.isin(np.arange(len(trace.parents)), trace.accepted).astype(float) for trace in traces]
    expected = [confidence_map.chances(trace.confidence, trace.depths) for trace in traces]
    sums = [np.bincount(depths, np.concatenate(each))[1:] for each in (accepted, expected)]
    by_depth = (sums[0] + BELIEVED) / (sums[1] + BELIEVED)
    fitted = replace(confidence_map, by_depth=tuple(by_depth.tolist()))
    trees = [
        Drafted(fitted.chances(trace.confidence, trace.depths), trace.depths, each)
        for trace, each in zip(traces, accepted, strict=True)
    ]
    return replace(fitted, trees=tuple(trees))


def prices_of(costs: Costs, confidence_map: ConfidenceMap, most_iterations: int = MOST_ITERATIONS) -> Prices:
    """What one model's steps cost, for the sizes of `SIZES` that were measured.

    Raises SpecquantError where no draft was measured.
    """
    if not len(costs.draft_ms):
        raise SpecquantError("the price of a tree needs the time of a draft: none was measured of this model's head")
    largest = costs.verify_ms.index.max()
    verify_ms = {size: costs.verify(size) for size in (1, *SIZES) if size <= largest}
    draft_ms = [max(0.0, costs.draft(count)) for count in range(1, most_iterations + 1)]
    return Prices(verify_ms, draft_ms, costs.other_ms, confidence_map)


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


def simulate(
    texts: Iterable[Sequence[ConfidenceTrace]], prices: Prices, tree: tuple[int, int] | None = None
) -> Simulated:
    """What decoding would gain on recorded trees under prices.

    The traces are those of trees of one size. Each step goes on at the next recorded tree, even if it accepted fewer
    tokens than the recorded step: acceptance depends on the text, hardly on the single token.

    Args:
        texts: Traces of each text.
        prices: What steps cost.
        tree: Nodes and iterations of static trees; None where a `Budget` chooses.
    """
    tokens, steps, sizes, counts, drafts, passes = 0, 0, 0, 0, 0.0, 0.0
    budget, most = Budget(prices, TOP_K), min(MOST_ITERATIONS, len(prices.draft_ms))
    for text in texts:
        for trace in text:
            size, iterations = tree or budget.begin(most)
            budget.choose()
            accepted = trace.within(iterations).accepted_length(size)
            if not tree:
                budget.learn(accepted - 1, *((trace.confidence, trace.depths) if budget.looks else ()))
            tokens += accepted
            steps, sizes, counts = steps + 1, sizes + size, counts + iterations
            drafts += prices.step_ms(size, iterations) - prices.step_ms(size, 0)
            passes += prices.verify_ms[size]
    if not steps:
        raise SpecquantError("there are no recorded trees to simulate with: record them (specquant bench confidences)")
    time_ms = drafts + passes + steps * prices.other_ms
    return Simulated(tokens / time_ms, *(total / steps for total in (tokens, sizes, counts, drafts, passes)))


def best_static(texts: Sequence[Sequence[ConfidenceTrace]], prices: Prices) -> tuple[tuple[int, int], Simulated]:
    """The fastest trees of one size, or none at all (1, 0), and what they reach."""
    every = [(size, count) for size in prices.sizes for count in range(1, len(prices.draft_ms) + 1)]
    told = {tree: simulate(texts, prices, tree) for tree in [(1, 0), *every]}
    best = max(told, key=lambda tree: told[tree].tokens_per_ms)
    return best, told[best]


def predicted_gains(texts: Sequence[Sequence[ConfidenceTrace]], costs: Mapping[str, LevelCosts]) -> pd.DataFrame:
    """What adaptive draft sizes gain over the best static ones, for each entry of `costs`. Half of the texts calibrate
    confidence, the others are judged."""
    confidence_map = fit_confidence_map(texts[::2])
    rows = {}
    for name, of_model in costs.items():
        prices = prices_of(of_model, confidence_map)
        tree, static = best_static(texts[1::2], prices)
        adaptive = simulate(texts[1::2], prices)
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


def give_confidence_map(models: Models, *trees: tuple[int, int]) -> None:
    """If one of these trees is adaptive, give the models the recorded worth of confidence."""
    if ADAPTIVE in (nodes for nodes, _ in trees):
        models.confidence_map = recorded_confidence_map()


def recorded_confidence_map(path: str | Path = RECORDED) -> ConfidenceMap:
    """That of the tiny target's head, which stands in for other heads. If the project's data is not there, confidence
    itself is taken as the chance. Raises SpecquantError where it is there and damaged."""
    try:
        there = resolve(path).is_file()
    except SpecquantError:  # no clone
        there = False
    if not there:
        return ConfidenceMap()
    return fit_confidence_map(read_confidences(read_results(path, table="confidences"), where=path))
