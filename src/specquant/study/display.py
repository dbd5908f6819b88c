"""What a notebook shows: figures with their captions, tables that fit the page, and figures that sliders move."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure

from specquant.decoding.drafters import MARKS
from specquant.files import resolve
from specquant.tables.style import RC, SCHEMES, mark, model_label, save_figure

SCREEN_DPI = 200  # of the picture in a notebook, which is shown at PIXELS_PER_INCH
PIXELS_PER_INCH = 150
MOST_COLUMNS = 7  # of a table
KINDS = {"scheme": SCHEMES, "head_scheme": SCHEMES, "method": MARKS}  # columns of names that figures have marks for
MISSING = "—"
NO_KERNEL = "Run the notebook in JupyterLab to have its controls here."


def show_figure(figure: Figure, name: str, directory: str | Path, text: str) -> None:
    """Save a figure with its caption (`save_figure`), and show both, the caption under it."""
    save_figure(figure, name, directory, text)
    display(picture(figure), caption_under(text))


def show_saved(path: str | Path) -> None:
    """Show a figure that `save_figure` wrote, its caption under it. path: of its PNG."""
    path = resolve(path)
    image = plt.imread(path)
    width = round(image.shape[1] / RC["savefig.dpi"] * PIXELS_PER_INCH)
    display(Image(path.read_bytes(), width=width), caption_under(path.with_suffix(".txt").read_text(encoding="utf-8")))


def picture(figure: Figure) -> Image:
    """A figure as notebooks show it. It is closed: drawn once, and not again at the cell's end."""
    content = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(content, format="png", dpi=SCREEN_DPI, metadata={"Software": None})
    plt.close(figure)
    return Image(content.getvalue(), width=round(figure.get_figwidth() * PIXELS_PER_INCH))


class Caption(HTML):
    """A paragraph that is its own words where HTML is not shown."""

    def __init__(self, text: str):
        super().__init__(f'<p style="max-width:60em; font-size:90%; margin:0.3em 0 1em">{escape(text.strip())}</p>')
        self.text = text.strip()

    def __repr__(self) -> str:
        return self.text


def caption_under(text: str) -> Caption:
    """A caption, in the theme's own colour."""
    return Caption(text)


@dataclass(frozen=True)
class ReadableTable:
    """A table of words and of numbers that are words already. Names stand left, numbers right; nothing is cut off."""

    frame: pd.DataFrame
    numbers: tuple[bool, ...]

    def __repr__(self) -> str:
        return self.frame.to_string(index=False)

    def _repr_html_(self) -> str:
        sides = ["right" if number else "left" for number in self.numbers]

        def row(values: Sequence[str], cell: str) -> str:
            cells = (
                f'<{cell} style="text-align:{side}">{escape(value)}</{cell}>'
                for value, side in zip(values, sides, strict=True)
            )
            return f"<tr>{''.join(cells)}</tr>\n"

        body = "".join(row(values, "td") for values in self.frame.itertuples(index=False, name=None))
        head = row(list(self.frame.columns), "th")
        return f'<table class="dataframe">\n<thead>\n{head}</thead>\n<tbody>\n{body}</tbody>\n</table>'


def readable(
    table: pd.DataFrame | pd.Series,
    names: Mapping[Any, str] | None = None,
    decimals: int | Mapping[str, int] = 2,
    index: Sequence[str] | None = None,
) -> ReadableTable:
    """A table for people to read: its index as the first columns, repeated only where it changes.

    Args:
        table: schemes, methods and models in its index or in columns of their names are written as figures do.
        names: column -> heading, with the unit; only these columns are shown, in this order. None: all as they are.
        decimals: of numbers that are not whole; by heading where they differ (2 for those that it lacks).
        index: headings of the index's columns; by default its names.

    Raises:
        ValueError: the table would have more than `MOST_COLUMNS` columns, or a column without any value.
    """
    frame = table.to_frame() if isinstance(table, pd.Series) else table
    if names is not None:
        frame = frame[list(names)].rename(columns=dict(names))
    frame.columns = [" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame.columns]
    counted = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    levels = [] if counted else [str(name or "") for name in frame.index.names]
    shown = frame.reset_index() if levels else frame
    headings = [*(index or levels), *frame.columns]
    if len(headings) > MOST_COLUMNS:
        raise ValueError(f"a table of {len(headings)} columns is wider than the page: show at most {MOST_COLUMNS}")
    words, numbers = {}, []
    for place, (source, heading) in enumerate(zip(shown.columns, headings, strict=True)):
        column = shown.iloc[:, place]
        if column.isna().all():
            raise ValueError(f"the column {heading} has no value: leave it out")
        places = decimals if isinstance(decimals, int) else decimals.get(heading, 2)
        kind = str(source) if source in KINDS else heading
        words[heading] = [told(value, kind, places) for value in column]
        numbers.append(pd.api.types.is_numeric_dtype(column))
    written = pd.DataFrame(words)
    if len(levels) > 1:
        repeated = written[headings[: len(levels) - 1]].eq(written[headings[: len(levels) - 1]].shift())
        for place, heading in enumerate(headings[: len(levels) - 1]):
            same = repeated[headings[: place + 1]].all(axis=1)
            written[heading] = written[heading].mask(same, "")
    return ReadableTable(written, tuple(numbers))


def told(value: Any, column: str, decimals: int = 2) -> str:
    """One value in words: a number with its decimals, a scheme, method or model as figures call it."""
    if isinstance(value, str):
        known = KINDS.get(column)
        return mark(value, known).label if known else model_label(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if pd.isna(value):
        return MISSING
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{decimals}f}"


def _shown_together(controls: list[Any]) -> Any:
    """Controls one below the other; where there is no kernel to move them, a sentence stands in their place."""
    from ipywidgets import VBox

    class Controls(VBox):
        def _repr_mimebundle_(self, **kwargs: Any) -> Any:
            bundle = super()._repr_mimebundle_(**kwargs)
            return bundle | {"text/plain": NO_KERNEL}

    return Controls(controls)


def moved_by(
    draw: Callable[..., tuple[Figure, str]], save_as: tuple[str, str | Path] | None = None, **controls: Any
) -> None:
    """Show controls, and under them a figure with its caption that is drawn anew whenever one is moved.

    Where no kernel answers, as on a page, the figure stays as it was drawn first.

    Args:
        draw: takes the controls' values by their names, and gives a figure and its caption.
        save_as: the name and the directory to save the figure under that is drawn first (`save_figure`).
        controls: ipywidgets, by those names.
    """

    def drawn() -> tuple[Figure, str]:
        return draw(**{name: control.value for name, control in controls.items()})

    figure, text = drawn()
    if save_as:
        save_figure(figure, *save_as, text)
    display(_shown_together(list(controls.values())))
    handles = [display(each, display_id=True) for each in (picture(figure), caption_under(text))]

    def redraw(_: object) -> None:
        try:
            figure, text = drawn()
        except Exception as error:  # which JupyterLab would show nowhere
            handles[1].update(caption_under(f"This could not be drawn. {type(error).__name__}: {error}"))
            raise
        for handle, each in zip(handles, (picture(figure), caption_under(text)), strict=True):
            handle.update(each)

    for control in controls.values():
        control.observe(redraw, "value")
