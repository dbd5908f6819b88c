"""What notebooks show fits the page, says its units, and hides nothing."""

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from specquant.files import project_root
from specquant.study.display import MISSING, NO_KERNEL, caption_under, picture, readable, told
from specquant.study.page import page
from specquant.tables.intervals import sample
from specquant.tables.style import COLUMN_WIDTH_IN, caption, device_label, label_ends, model_label, new_figure


def table():
    index = pd.MultiIndex.from_product([["llama-3-70b", "llama-3-8b"], ["fp16", "w8a8"]], names=["model", "scheme"])
    return pd.DataFrame({"time_ms": [35.2, 18.9, 4.62, None], "steps": [1, 2, 3, 1200]}, index)


def test_a_table_is_told_in_the_names_of_figures_with_units_and_decimals():
    shown = readable(table(), {"time_ms": "1 token (ms)", "steps": "steps"}, {"1 token (ms)": 1}).frame
    assert list(shown.columns) == ["model", "scheme", "1 token (ms)", "steps"]
    assert shown.model.tolist() == ["Llama-3-70B", "", "Llama-3-8B", ""]  # repeated only where it changes
    assert shown.scheme.tolist() == ["FP16", "W8A8", "FP16", "W8A8"]
    assert shown["1 token (ms)"].tolist() == ["35.2", "18.9", "4.6", MISSING]
    assert shown.steps.tolist() == ["1", "2", "3", "1,200"]


def test_a_table_is_html_with_words_left_and_numbers_right_and_no_word_cut_off():
    long = "a claim " * 40 + "<end>"
    html = readable(pd.DataFrame({"claim": [long], "value": [1.5]}))._repr_html_()
    assert f'<td style="text-align:left">{"a claim " * 40}&lt;end&gt;</td>' in html
    assert '<td style="text-align:right">1.50</td>' in html
    assert long in repr(readable(pd.DataFrame({"claim": [long]})))


def test_a_series_and_columns_of_two_levels_can_be_read():
    assert list(readable(table().time_ms).frame.columns) == ["model", "scheme", "time_ms"]
    two = pd.DataFrame({("ours", "median"): [1.0], ("ours", "low"): [0.9]}, index=pd.Index(["eagle2"], name="method"))
    shown = readable(two).frame
    assert list(shown.columns) == ["method", "ours median", "ours low"]
    assert shown.method.tolist() == ["EAGLE-2"]


def test_a_table_wider_than_the_page_and_an_empty_column_are_refused():
    with pytest.raises(ValueError, match="a table of 8 columns is wider than the page: show at most 7"):
        readable(pd.DataFrame([range(8)]))
    with pytest.raises(ValueError, match="the column b has no value: leave it out"):
        readable(pd.DataFrame({"a": [1.0], "b": [None]}))


@pytest.mark.parametrize(
    ("value", "column", "word"),
    [
        ("w4a8-qqq", "head_scheme", "W4A8-QQQ"),
        ("other", "scheme", "other"),
        ("llama-3-8b", "model", "Llama-3-8B"),
        (True, "lossless", "yes"),
        (float("nan"), "x", MISSING),
        (1234.5, "x", "1,234.50"),
    ],
)
def test_a_value_in_words(value, column, word):
    assert told(value, column) == word


def test_a_picture_is_closed_and_as_wide_as_a_column():
    figure, _ = new_figure()
    before = len(plt.get_fignums())
    shown = picture(figure)
    assert len(plt.get_fignums()) == before - 1
    assert shown.width == round(150 * COLUMN_WIDTH_IN)
    assert shown.data.startswith(b"\x89PNG")


def test_a_caption_is_its_words_where_html_is_not_shown():
    assert repr(caption_under("a < b\n")) == "a < b"
    assert "a &lt; b" in caption_under("a < b").data
    assert "color" not in caption_under("a < b").data  # the theme's own


def test_a_caption_says_model_weights_card_and_how_many():
    frame = pd.DataFrame({"model": "llama-3-70b", "weights": "synthetic", "process": [0, 1, 2], "scheme": "fp16"})
    told = "Time. Model: Llama-3-70B. Weights: synthetic. Device: H200. n: 3 processes."
    assert caption("Time.", frame, "H200") == told
    assert sample(frame.assign(scheme=["fp16", "fp16", "w8a8"])) == "1 to 2 processes"
    assert sample(frame.assign(context_length=[512, 512, 8192])) == "1 to 2 processes"
    assert sample(frame.head(1)) == "1 process"
    assert sample(pd.DataFrame({"scheme": ["fp16"] * 2, "prompts": [9, 9]})) == "18 prompts"
    assert sample(pd.DataFrame({"x": [1]})) == ""
    assert sample(frame, pd.DataFrame({"processes": [1]}), pd.DataFrame({"prompts": [9]})) == "1 to 3 processes"
    assert device_label("Intel(R) Xeon(R) Processor, 1 threads") == "Intel Xeon Processor, 1 thread"
    assert device_label("AMD EPYC, 11 threads") == "AMD EPYC, 11 threads"
    assert model_label("tiny") == "tiny"


def test_names_at_the_ends_of_lines_do_not_cover_each_other():
    figure, (axis,) = new_figure()
    axis.set(xlim=(0, 2), ylim=(0, 1))
    label_ends(axis, [(1, 0.50, "high", "red"), (1, 0.49, "low", "blue"), (1, 0.9, "far", "black")])
    figure.canvas.draw()
    low, high, far = sorted((text.get_window_extent() for text in axis.texts), key=lambda box: box.y0)
    assert high.y0 >= low.y1 - 1
    assert [text.get_text() for text in axis.texts] == ["low", "high", "far"]
    assert abs((far.y0 + far.y1) / 2 - axis.transData.transform((1, 0.9))[1]) < 2
    plt.close(figure)


MOVED = """
from ipywidgets import IntSlider
from specquant.study.display import moved_by
from specquant.tables.style import new_figure

def draw(size):
    if size == 8:
        raise ValueError("there is no 8")
    figure, (axis,) = new_figure()
    axis.plot([0, size])
    return figure, f"Up to {size}."

size = IntSlider(value=3, min=1, max=9)
moved_by(draw, size=size)
"""


def test_a_slider_moves_the_figure_and_its_caption_in_their_place(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(project_root() / "src"))
    cells = [nbformat.v4.new_code_cell(source) for source in (MOVED, "size.value = 7", "size.value = 8")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(notebook, kernel_name="python3")
    with client.setup_kernel():
        client.execute_cell(notebook.cells[0], 0)
        before = [dict(output.data) for output in notebook.cells[0].outputs if output.output_type == "display_data"]
        client.execute_cell(notebook.cells[1], 1)
        after = [dict(output.data) for output in notebook.cells[0].outputs if output.output_type == "display_data"]
        with pytest.raises(CellExecutionError):
            client.execute_cell(notebook.cells[2], 2)
    told = notebook.cells[0].outputs[-1].data["text/plain"]
    assert told == "This could not be drawn. ValueError: there is no 8"
    assert before[0]["text/plain"] == NO_KERNEL
    assert len(before) == len(after) == 3  # the controls, one figure, one caption
    assert before[1]["image/png"] != after[1]["image/png"]
    assert [each[2]["text/plain"] for each in (before, after)] == ["Up to 3.", "Up to 7."]
    assert not [output for output in notebook.cells[1].outputs if output.output_type == "error"]


def test_a_page_folds_what_jupyterlab_folds():
    hide = {"jupyter": {"source_hidden": True}}
    folded = nbformat.v4.new_code_cell("folded_away = 1", metadata=hide)
    parameters = nbformat.v4.new_code_cell("steps = 2", metadata=hide | {"tags": ["parameters"]})
    seen = nbformat.v4.new_code_cell("in_sight = 3")
    html = page(nbformat.v4.new_notebook(cells=[folded, parameters, seen]), "a")
    places = [
        html.index(text) for text in ("<details", "folded_away", "</details>", "parameters</summary>", "in_sight")
    ]
    assert places == sorted(places)
    assert html.count("<details") == 2
