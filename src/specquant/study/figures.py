"""The figures: each a function from a table of results to a figure, the same for notebooks and for recorded data."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from specquant.decoding.drafters import MARKS
from specquant.errors import SpecquantError
from specquant.tables.marks import Mark
from specquant.tables.speed import over_equal_texts, speedups
from specquant.tables.style import SCHEMES, in_order, legend_above, mark, new_figure


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


def accepted_lengths(frame: pd.DataFrame) -> Figure:
    """Accepted length (tokens per target pass) of each method, by scheme. `frame`: throughput.csv."""
    drafted = frame[frame["method"] != "autoregressive"]
    means = drafted.groupby(["scheme", "method"])["accepted_length"].mean()
    return _dots(means, SCHEMES, "accepted length (tokens per target pass)")


def speedups_by_scheme(frame: pd.DataFrame) -> Figure:
    """Speedup of each method over autoregressive decoding with the same scheme, by scheme. `frame`: throughput.csv."""
    return _dots(_speedups(frame, "scheme"), SCHEMES, "speedup over the same scheme without drafts")


def speedups_by_task(frame: pd.DataFrame) -> Figure:
    """Speedup of each method over autoregressive decoding with the same scheme, by task. `frame`: throughput.csv."""
    return _dots(_speedups(frame, "task"), {}, "speedup over autoregressive decoding")


def step_times(frame: pd.DataFrame) -> Figure:
    """Where the time of a step goes, in milliseconds: drafting, verifying, the rest. `frame`: throughput.csv.

    A bar per scheme and method, a step being one pass of the target.
    """
    means = frame.groupby(["scheme", "method"])[["draft_ms", "verify_ms", "other_ms"]].mean()
    order = [
        (scheme, method)
        for scheme in in_order(frame["scheme"], SCHEMES)
        for method in in_order(frame["method"], MARKS)
        if (scheme, method) in means.index
    ]
    figure, (axis,) = new_figure(height_in=0.8 + 0.19 * len(order))
    left = np.zeros(len(order))
    colors = {"draft_ms": "#0173b2", "verify_ms": "#de8f05", "other_ms": "#949494"}
    for column, color in colors.items():
        widths = means.loc[order, column].to_numpy()
        axis.barh(range(len(order)), widths, left=left, color=color, label=column.removesuffix("_ms"), height=0.7)
        left += np.nan_to_num(widths)
    labels = [f"{mark(scheme, SCHEMES).label}, {mark(method, MARKS).label}" for scheme, method in order]
    axis.set_yticks(range(len(order)), labels)
    axis.invert_yaxis()
    axis.set_xlabel("time of a step (ms)")
    legend_above(figure, axis, columns=3)
    return figure


def quality(frame: pd.DataFrame) -> Figure:
    """Held-out perplexity of each scheme over that of FP16, or of the first one where FP16 was not measured, in
    percent, by domain. `frame`: quality.csv."""
    perplexity = frame.pivot_table(index="scheme", columns="domain", values="perplexity")
    reference = "fp16" if "fp16" in perplexity.index else frame["scheme"].iloc[0]
    increase = (perplexity / perplexity.loc[reference] - 1) * 100
    schemes = [scheme for scheme in in_order(frame["scheme"], SCHEMES) if scheme != reference]
    figure, (axis,) = new_figure(height_in=0.9 + 0.19 * len(schemes))
    looks = (("#0173b2", "o"), ("#de8f05", "s"), ("#029e73", "^"), ("#cc78bc", "D"))
    for (color, marker), domain in zip(looks, increase.columns, strict=False):
        axis.plot(increase.loc[schemes, domain], range(len(schemes)), marker, color=color, label=domain)
    axis.axvline(0, color="0.4", linewidth=0.6)
    axis.set_yticks(range(len(schemes)), [mark(scheme, SCHEMES).label for scheme in schemes])
    axis.invert_yaxis()
    axis.set_xlabel(f"perplexity above {mark(reference, SCHEMES).label} (%)")
    legend_above(figure, axis, columns=3)
    return figure


def kernels(frame: pd.DataFrame) -> Figure:
    """Time of one linear layer against the number of tokens, by implementation and scheme. `frame`: kernels.csv."""
    groups = list(frame.groupby(["layer", "in_features", "out_features"]))
    implementations = sorted(frame["implementation"].unique())
    figure, axes = new_figure(len(groups), 1, height_in=0.9 + 1.5 * len(groups), sharex=True)
    for axis, ((layer, in_features, out_features), rows) in zip(axes, groups, strict=True):
        for (scheme, implementation), line in rows.groupby(["scheme", "implementation"]):
            line = line.sort_values("draft_size")
            look = mark(scheme, SCHEMES)
            dashes = ("-", "--", ":", "-.")[implementations.index(implementation) % 4]
            axis.plot(
                line["draft_size"],
                line["time_us"],
                dashes,
                color=look.color,
                marker=look.marker,
                label=f"{look.label}, {implementation}",
            )
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
        axis.set(title=f"{layer}, {in_features} to {out_features}", ylabel="time (µs)")
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("tokens in one pass")
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
    figure, (axis,) = new_figure(height_in=3.0)
    for scheme in in_order(rows["scheme"], SCHEMES):
        line = rows[rows["scheme"] == scheme].sort_values("draft_size")
        look = mark(scheme, SCHEMES)
        one = line["time_us"].iloc[0]
        axis.plot(line["draft_size"], line["time_us"] / one, look.marker, color=look.color, label=look.label)
        axis.plot(line["draft_size"], line["predicted_us"] / one, "--", color=look.color, linewidth=0.8)
    axis.set(xlabel="draft size (tokens in one pass)", ylabel="time over that of one token")
    axis.set_ylim(bottom=0)
    legend_above(figure, axis, columns=3)
    return figure


def _speedups(frame: pd.DataFrame, by: str) -> pd.Series:
    """Speedup over autoregressive decoding of the same model and scheme; index (`by`, method)."""
    keys = list(dict.fromkeys(["model", "scheme", by, "method"]))
    gained = speedups(over_equal_texts(frame, keys, "tokens_per_s"))
    if gained.isna().any():
        raise SpecquantError(
            "the throughput table lacks autoregressive rows to compare with, for each model and scheme"
        )
    return gained.drop("autoregressive", level="method").groupby([by, "method"]).mean()


def _dots(values: pd.Series, marks: dict[str, Mark], xlabel: str) -> Figure:
    """A row per first index level, a mark per method."""
    rows = in_order(values.index.get_level_values(0).to_series(), marks)
    methods = in_order(values.index.get_level_values("method").to_series(), MARKS)
    figure, (axis,) = new_figure(height_in=0.9 + 0.19 * len(rows))
    for method in methods:
        line = values.xs(method, level="method")
        look = mark(method, MARKS)
        axis.plot(line, [rows.index(name) for name in line.index], look.marker, color=look.color, label=look.label)
    axis.axvline(1, color="0.4", linewidth=0.6)
    axis.set_yticks(range(len(rows)), [mark(name, marks).label for name in rows])
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    legend_above(figure, axis, columns=3)
    return figure
