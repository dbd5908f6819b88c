"""What would speculation gain for several sequences at once? Predicted from passes over one: no batch was measured."""

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from specquant.errors import SpecquantError
from specquant.planning.acceptance import AcceptanceStatistics
from specquant.planning.costs import LevelCosts
from specquant.planning.planner import Planner

BATCHES = (1, 2, 4, 8)


def in_batch(costs: LevelCosts, batch: int) -> LevelCosts:
    """What a step of so many sequences costs, from what a step of one costs.

    A pass over n tokens of each sequence is taken to last as long as one over batch * n tokens of one sequence: the
    weights are read once, and the products are the same. The costs are too low, for two things are left out. Each
    sequence has keys and values of its own to read. And a draft for several sequences lasts longer than one for one.

    Args:
        costs: of one sequence.
        batch: how many there are.

    Returns:
        The costs of all together, by the draft size of each.

    Raises:
        SpecquantError: if a pass over `batch` tokens was not measured.
    """
    if batch not in costs.verify_ms.index:
        sizes = ", ".join(map(str, costs.verify_ms.index))
        raise SpecquantError(f"a pass over {batch} tokens was not measured: choose a batch of {sizes}")
    passes = costs.verify_ms[costs.verify_ms.index >= batch]
    return replace(costs, verify_ms=passes.set_axis(passes.index / batch))


def speedups_in_batches(
    planner: Planner, statistics: AcceptanceStatistics, batches: Iterable[int] = BATCHES
) -> pd.DataFrame:
    """Each method's best plan in batches of some sizes.

    Args:
        planner: of one sequence.
        statistics: how often drafts are accepted, in every sequence alike.
        batches: how many sequences at once. Plans whose pass would be wider than what was measured are left out.

    Returns:
        A row for each batch and method: columns as those of `Planner.table`, of one sequence; `speedup` is over
        decoding one by one in the same batch.

    Raises:
        SpecquantError: as `in_batch`.
    """
    tables = []
    for batch in batches:
        levels = [in_batch(costs, batch) for costs in (planner.target, planner.intermediate) if costs is not None]
        best = Planner(*levels).table(statistics).groupby("method", sort=False).head(1)
        tables.append(best.assign(batch=batch))
    return pd.concat(tables, ignore_index=True).set_index(["batch", "method"])
