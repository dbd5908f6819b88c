"""The figures: each a function from a table of results to a figure, the same for notebooks and for recorded data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from specquant.tables.style import (
    SCHEMES,
    along_draft_sizes,
    in_order,
    label_ends,
    legend_above,
    mark,
    model_label,
    new_figure,
)


def published_speedups(frame: pd.DataFrame) -> Figure:
    """What the paper reports (its figure 1): the schemes' own speedup, and what EAGLE-2 adds to it.

    `frame`: rows of data/published/speedups.csv; value is the speedup of one scheme, model and GPU.
    """
    frame = frame[frame["where"].str.startswith("figure 1")]
    totals = (frame["method"] == "eagle2") & (frame["quantity"] == "speedup over fp16 autoregressive")
    frame = frame[~totals]  # products of both panels
    figure, axes = new_figure(1, 2, height_in=2.5, sharey=True)
    schemes = in_order(frame["scheme"], SCHEMES)
    settings = {
        ("Llama-3-8B", "A100"): ("#0173b2", "o"),
        ("Llama-3-8B", "RTX 3090"): ("#029e73", "s"),
        ("Llama-3-70B", "A100"): ("#d55e00", "D"),
    }
    panels = {
        "autoregressive": "speedup over FP16\n(70B: over W8A8)",
        "eagle2": "speedup of EAGLE-2\nover the same scheme",
    }
    for axis, (method, xlabel) in zip(axes, panels.items(), strict=True):
        for (model, gpu), (color, marker) in settings.items():
            rows = frame[(frame["model"] == model) & (frame["gpu"] == gpu) & (frame["method"] == method)]
            positions = [schemes.index(scheme) for scheme in rows["scheme"]]
            axis.plot(rows["value"], positions, marker, color=color, label=f"{model}, {gpu}")
        axis.axvline(1, color="0.4", linewidth=0.6)
        axis.set(xlabel=xlabel, xlim=(0.8, 3))
    axes[0].set_yticks(range(len(schemes)), [mark(scheme, SCHEMES).label for scheme in schemes])
    axes[0].invert_yaxis()
    legend_above(figure, axes[0], columns=1)
    return figure


def roofline(rows: pd.DataFrame, ceilings: pd.DataFrame) -> Figure:
    """Achieved rate against operations per byte, below what the card can do at best.

    `rows`: of `planning.roofline.decoder_layer`. `ceilings`: ceilings.csv, from the same run.
    """
    best = ceilings.set_index("what")["value"]
    figure, (axis,) = new_figure(height_in=3.2)
    intensities = np.geomspace(rows["intensity"].min() / 1.5, rows["intensity"].max() * 1.5, 200)
    for what, dashes in (("fp16 product (cuBLAS)", "--"), ("int8 product (cuBLASLt)", ":")):
        roof = np.minimum(best["read-only stream"] * intensities, best[what])
        axis.plot(intensities, roof, dashes, color="0.4", linewidth=0.8, label=what.replace(" product", ""))
    for scheme in in_order(rows["scheme"], SCHEMES):
        line = rows[rows["scheme"] == scheme].sort_values("intensity")
        look = mark(scheme, SCHEMES)
        axis.plot(line["intensity"], line["rate_top_s"], color=look.color, marker=look.marker, label=look.label)
    axis.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="rate (10¹² operations/s)")
    legend_above(figure, axis, columns=3)
    return figure


def predicted_times(rows: pd.DataFrame) -> Figure:
    """Measured time against draft size, over that of one token, and a dashed line as the roofline predicts it.

    `rows`: with predictions, of `planning.roofline.rooflines`.
    """
    figure, (axis,) = new_figure(height_in=2.5)
    for scheme in in_order(rows["scheme"], SCHEMES):
        line = rows[rows["scheme"] == scheme].sort_values("draft_size")
        look = mark(scheme, SCHEMES)
        one = line["time_us"].iloc[0]
        axis.plot(line["draft_size"], line["time_us"] / one, look.marker, color=look.color, label=look.label)
        sizes = np.linspace(line["draft_size"].min(), line["draft_size"].max(), 500)
        parts = [np.interp(sizes, line["draft_size"], line[part]) for part in ("reading_us", "computing_us")]
        axis.plot(sizes, np.maximum(*parts) / one, "--", color=look.color, linewidth=0.8)
    axis.set(xlabel="draft size (tokens in one pass)", ylabel="time over that of one token")
    axis.set_ylim(bottom=0.9)
    legend_above(figure, axis, columns=3)
    return figure


def verify_time(growth: pd.DataFrame, schemes: Sequence[str], predicted: Mapping[tuple[str, str], pd.Series]) -> Figure:
    """Time of a pass over that of one token against draft size, a panel for each model; bars from the lowest
    to the highest process.

    growth: of `tables.verify_cost.pass_growth`, behind one context. schemes: those that are drawn, where they were
    measured. predicted: the roofline's growth by model and scheme, dashed, where it is known.
    """
    models = list(growth.index.unique("model"))[::-1]  # tables have the largest first
    figure, axes = new_figure(1, len(models), height_in=2.5, wide=len(models) > 1, sharey=True)
    highest = growth["high"].max()
    for axis, model in zip(axes, models, strict=True):
        along_draft_sizes(axis)
        axis.set(title=model_label(model), xlabel="draft size (tokens in one pass)", ylim=(0.95, 1.03 * highest))
        axis.set_xlim(0.9, 220)
        axis.set_xticks([1, 2, 4, 8, 16, 32, 64])
        ends = []
        measured = growth.xs(model, level="model").index.unique("scheme")
        for scheme in (scheme for scheme in schemes if scheme in measured):
            line = growth.xs((model, scheme), level=("model", "scheme")).droplevel(["weights", "context_length"])
            line, look = line.sort_index(), mark(scheme, SCHEMES)
            bars = (line["median"] - line["low"], line["high"] - line["median"])
            about: dict[str, Any] = {"color": look.color, "marker": look.marker, "label": look.label, "elinewidth": 0.7}
            axis.errorbar(line.index, line["median"], yerr=bars, **about)
            if (model, scheme) in predicted:
                roof = predicted[model, scheme]
                axis.plot(roof.index, roof, "--", color=look.color, linewidth=0.8)
            ends.append((line.index[-1], line["median"].iloc[-1], look.label, look.color))
        label_ends(axis, ends)
    axes[0].set_ylabel("time of a pass\nover that of one token")
    return figure
