"""The house style: one look for every figure, readable at one column's width and by colour-blind readers."""

import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from specquant.files import resolve, write_file
from specquant.tables.intervals import sample
from specquant.tables.marks import Mark

COLUMN_WIDTH_IN = 3.34  # 85 mm
PAGE_WIDTH_IN = 7.0  # 178 mm: two columns
MOST_HEIGHT_IN = 100 / 25.4


# Three or four in a panel can be told apart: the others are in a figure of their own, beside FP16.
MAIN_SCHEMES = ("fp16", "w8a8", "w4a8-qqq", "w4a16-g128")
# Colours are seaborn's "colorblind" palette; shapes differ too, so that print in grey still tells them apart.
SCHEMES = {
    "fp16": Mark("FP16", "#000000", "o"),
    "w8a8": Mark("W8A8", "#949494", "s"),
    "w4a16-g128": Mark("W4A16-g128", "#0173b2", "^"),
    "w4a16-g128-rot": Mark("W4A16-g128-rot", "#56b4e9", "v"),
    "w4a8-qqq": Mark("W4A8-QQQ", "#d55e00", "D"),
    "w4a8-qqq-g128": Mark("W4A8-QQQ-g128", "#de8f05", "P"),
    "w4a8-qoq": Mark("W4A8-QoQ", "#029e73", "X"),
    "w4a8-qoq-g128": Mark("W4A8-QoQ-g128", "#cc78bc", "p"),
    "fp8": Mark("FP8", "#ca9161", "<"),
    "w4a8-fp8-g128": Mark("W4A8-FP8-g128", "#fbafe4", ">"),
}

RC: dict[Any, Any] = {
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "pdf.fonttype": 42,  # embedded TrueType, which publishers ask for
    "svg.hashsalt": "specquant",
}


def new_figure(
    rows: int = 1, columns: int = 1, height_in: float = 2.2, wide: bool = False, **subplots
) -> tuple[Figure, list[Axes]]:
    """A figure of one column's width, or of two (`wide`), and `height_in` in the house style, and its axes in reading
    order.

    Sets the style for the process, so that what a notebook draws by itself matches. None is taller than
    `MOST_HEIGHT_IN`.
    """
    import seaborn as sns  # takes a second to load, of which every process that measures is spared

    sns.set_theme(context="paper", style="whitegrid", palette="colorblind", rc=RC)
    size = (PAGE_WIDTH_IN if wide else COLUMN_WIDTH_IN, min(height_in, MOST_HEIGHT_IN))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **subplots)
    return figure, list(axes.flat)


def in_order(values: pd.Series, marks: dict[str, Mark]) -> list[str]:
    """The distinct values of a column in the order of `marks`, those that it does not know last."""
    present = list(pd.unique(values))
    return [name for name in marks if name in present] + sorted(name for name in present if name not in marks)


def mark(name: str, marks: dict[str, Mark]) -> Mark:
    """The mark of a scheme or method; a name of its own for one that the house style does not know."""
    return marks.get(name, Mark(name, "#ece133", "*"))


def model_label(name: str) -> str:
    """A model's name as papers write it, "Llama-3-70B"; other words as they are."""
    return f"Llama-3-{name.removeprefix('llama-3-').upper()}" if name.startswith("llama-3-") else name


def size_label(model: object) -> str:
    """A Llama-3 by its size alone: "70B"; other names as they are."""
    return model_label(str(model)).removeprefix("Llama-3-")


def device_label(name: str) -> str:
    """A device for people to read: "Intel Xeon Processor, 1 thread"."""
    return re.sub(r", 1 threads$", ", 1 thread", name.replace("(R)", ""))


def card_label(device: str) -> str:
    """A GPU as its data sheet calls it: "H200"."""
    return device.removeprefix("NVIDIA ")


def along_draft_sizes(axis: Axes) -> None:
    """A logarithmic axis of draft sizes, which are written out."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))


def ink(color: str) -> str:
    """A colour for words on white, darkened until they can be read (a contrast of 4.5, WCAG 2's AA)."""
    red, green, blue = to_rgb(color)
    while 1.05 / (_luminance(red, green, blue) + 0.05) < 4.5:
        red, green, blue = 0.95 * red, 0.95 * green, 0.95 * blue
    return to_hex((red, green, blue))


def _luminance(*channels: float) -> float:
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def label_ends(axis: Axes, lines: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name behind its end, in its colour, instead of a legend.

    Args:
        axis: whose limits are final.
        lines: x and y of an end, name, colour. Names that would cover each other are moved apart.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    points_high = axis.get_position().height * figure.get_figheight() * 72
    bottom, top = axis.get_ylim()
    apart = (top - bottom) * 1.15 * float(RC["legend.fontsize"]) / points_high
    place = -float("inf")
    for x, y, name, color in sorted(lines, key=lambda line: line[1]):
        place = max(y, place + apart)
        axis.annotate(
            name,
            (x, y),
            xytext=(6, (place - y) / (top - bottom) * points_high),
            textcoords="offset points",
            color=ink(color),
            fontsize=RC["legend.fontsize"],
            va="center",
            annotation_clip=False,
        )


def row_for_each(figure: Figure, axis: Axes, labels: Sequence[str], xlabel: str, columns: int) -> None:
    """Label the rows 0, 1, 2, ... of an axis, the first at the top, and put the legend above, in `columns`."""
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    legend_above(figure, axis, columns)


def legend_above(figure: Figure, axis: Axes, columns: int) -> None:
    """The legend of all that any panel shows, above them, in up to so many columns as the figure is wide for.

    axis: whose names come first.
    """
    handles, labels = axis.get_legend_handles_labels()
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            if panel is not axis and label not in labels:
                handles.append(handle)
                labels.append(label)
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=columns)
    if columns > 1 and legend.get_window_extent().width > 1.04 * figure.bbox.width:  # its edges are empty
        legend.remove()
        legend_above(figure, axis, columns - 1)


def caption(text: str, frame: pd.DataFrame, device: str | None = None, beside: Iterable[pd.DataFrame] = ()) -> str:
    """`text`, followed by what the numbers rest on: the table's `model`, `weights` and `acceptance` columns, the
    device, and how many were measured, also of the tables beside it that are drawn from.

    Of the tables' rows only those are given that are drawn.
    """
    facts = [
        f"{column.capitalize()}: {', '.join(map(model_label, sorted(frame[column].dropna().unique())))}."
        for column in ("model", "weights", "acceptance")
        if column in frame.columns and frame[column].notna().any()
    ]
    if device is not None:
        facts.append(f"Device: {device_label(device)}.")
    if number := sample(frame, *beside):
        facts.append(f"n: {number}.")
    return " ".join([text, *facts])


def save_figure(figure: Figure, name: str, directory: str | os.PathLike, caption: str | None = None) -> Path:
    """Save `name`.pdf and `name`.png, and the caption as `name`.txt; returns the PNG's path.

    A relative directory is below the project root. The files carry no date, so the same versions of the libraries write
    the same bytes. Raises SpecquantError where the directory cannot be written.
    """
    directory = resolve(directory)
    no_dates = {"pdf": {"CreationDate": None}, "png": {"Software": None}}
    for kind, metadata in no_dates.items():
        content = io.BytesIO()
        with matplotlib.rc_context(RC):
            figure.savefig(content, format=kind, metadata=metadata)
        write_file(directory / f"{name}.{kind}", content.getvalue(), by_several=True)
    if caption is not None:
        write_file(directory / f"{name}.txt", caption + "\n", by_several=True)
    return directory / f"{name}.png"
