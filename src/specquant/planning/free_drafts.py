"""How large a draft is free? As large as reading the weights takes longer than multiplying."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from specquant.models.synthetic import synthetic_config
from specquant.planning.cards import Card, PassWork, read_cards
from specquant.tables.style import SCHEMES, along_draft_sizes, in_order, mark, new_figure, row_for_each


def largest_free_measured(times: pd.DataFrame, tolerance: float = 0.1) -> pd.Series:
    """The largest draft size up to which no pass takes longer than one of one token by more than `tolerance`.

    times: a row for each model and scheme, a column for each draft size.
    """
    times = times.sort_index(axis=1)
    slower = times.gt(times[1] * (1 + tolerance), axis=0)
    return (~slower.cummax(axis=1)).apply(lambda free: free.index[free].max(), axis=1)


def shares_reached(ceilings: pd.DataFrame, card: str) -> tuple[float, dict[str, float]]:
    """What was measured of a card as shares of its data sheet: of the bandwidth, and of the rates.

    ceilings: ceilings.csv, medians over processes. FP8 was not measured: its share is int8's.
    """
    best, sheet = ceilings.set_index("what").value, read_cards()[card]
    int8 = best["int8 product (cuBLASLt)"] / sheet.rates["int8"]
    rates = {"fp16": best["fp16 product (cuBLAS)"] / sheet.rates["fp16"], "int8": int8, "fp8": int8}
    return best["read-only stream"] / sheet.bandwidth_tb_s, rates


def free_drafts(model: str, schemes: Iterable[str], bandwidth: float, rates: Mapping[str, float]) -> pd.DataFrame:
    """The draft size up to which reading a model's weights takes longer than multiplying: cards by schemes.

    bandwidth, rates: shares of the data sheets that every card is taken to reach (`shares_reached`). NaN where a card
    cannot multiply what a scheme needs.
    """
    works = {scheme: PassWork(synthetic_config(model), scheme) for scheme in schemes}
    return pd.DataFrame(
        {
            scheme: {
                name: work.largest_free_draft(card.reached(bandwidth, rates)) if card.can(work.scheme) else np.nan
                for name, card in read_cards().items()
            }
            for scheme, work in works.items()
        }
    )


def least_growth(model: str, scheme: str, draft_sizes: Iterable[int], card: Card) -> pd.Series:
    """What a card's roofline says of the time of a pass over that of one token, by draft size (`PassWork.time_ms`).

    Raises:
        SpecquantError: the card cannot multiply what the scheme multiplies.
    """
    work = PassWork(synthetic_config(model), scheme)
    return pd.Series({size: work.time_ms(card, size) / work.time_ms(card, 1) for size in draft_sizes})


def least_growths(
    passes: pd.DataFrame, schemes: Iterable[str], ceilings: pd.DataFrame, card: str
) -> dict[tuple[str, str], pd.Series]:
    """`least_growth` by model and scheme, for a card as far as its measured ceilings go (`shares_reached`).

    Args:
        passes: Rows of verify_cost.csv: their models, and sizes from the smallest to the largest.
        schemes: Of these, those that were measured.
        ceilings: ceilings.csv of the same card, medians over processes.
        card: Its name; of one whose data sheet is not recorded nothing is known.
    """
    if card not in read_cards():
        return {}
    reached = read_cards()[card].reached(*shares_reached(ceilings, card))
    sizes = range(passes.draft_size.min(), passes.draft_size.max() + 1)
    measured = passes[["model", "scheme"]].drop_duplicates().itertuples(index=False, name=None)
    wanted = list(schemes)
    return {
        (model, scheme): least_growth(model, scheme, sizes, reached) for model, scheme in measured if scheme in wanted
    }


def draw_free_drafts(table: pd.DataFrame) -> Figure:
    """The draft size up to which computing takes no longer than reading. `table`: schemes by cards; NaN where none."""
    figure, (axis,) = new_figure(height_in=0.9 + 0.22 * len(table))
    for scheme in in_order(pd.Series(table.columns), SCHEMES):
        look = mark(scheme, SCHEMES)
        axis.plot(table[scheme], range(len(table)), look.marker, color=look.color, label=look.label)
    axis.axvline(60, color="0.4", linewidth=0.6, linestyle=":")
    along_draft_sizes(axis)
    row_for_each(figure, axis, list(table.index), "largest draft that is free", columns=3)
    return figure
