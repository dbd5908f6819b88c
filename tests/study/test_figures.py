import matplotlib.pyplot as plt
import pandas as pd
import pytest

from specquant.decoding.drafters import MARKS
from specquant.errors import SpecquantError
from specquant.measure import quality, throughput
from specquant.study import figures
from specquant.tables.style import COLUMN_WIDTH_IN, SCHEMES, legend_above, mark, new_figure, save_figure

SOME_SCHEMES = ["w4a16-g128", "fp16"]
TIMES_MS = {"autoregressive": 10.0, "eagle2": 5.0}


@pytest.fixture
def decoder_layer():
    """Rows of a roofline: two schemes, one of them bound by arithmetic at its end."""
    line = {"draft_size": [1, 16, 64], "intensity": [4.0, 64.0, 256.0], "time_us": [10.0, 10.0, 20.0]}
    lines = [pd.DataFrame(line).assign(scheme=scheme, rate_top_s=[4, 60, 120]) for scheme in SOME_SCHEMES]
    return pd.concat(lines).assign(reading_us=11.0, computing_us=lambda rows: 22 / 64 * rows.draft_size)


def test_a_roofline_lies_below_what_the_card_can_do(decoder_layer):
    ceilings = pd.DataFrame(
        {"what": ["read-only stream", "fp16 product (cuBLAS)", "int8 product (cuBLASLt)"], "value": [3.0, 500, 900]}
    )
    figure = figures.roofline(decoder_layer, ceilings)
    fp16_roof, int8_roof, *lines = figure.axes[0].lines
    assert max(fp16_roof.get_ydata()) == 500
    assert max(int8_roof.get_ydata()) == 900
    assert fp16_roof.get_ydata()[0] == pytest.approx(3 * fp16_roof.get_xdata()[0])
    assert [line.get_label() for line in lines] == ["FP16", "W4A16-g128"]
    assert list(lines[0].get_ydata()) == [4, 60, 120]
    plt.close(figure)


def test_predictions_are_drawn_over_the_measured_time_of_one_token(decoder_layer):
    figure = figures.predicted_times(decoder_layer)
    measured, predicted, *_ = figure.axes[0].lines
    assert list(measured.get_ydata()) == [1, 1, 2]
    times = predicted.get_ydata()
    assert (times[0], times[-1]) == pytest.approx((1.1, 2.2))
    assert predicted.get_xdata()[times > 1.101].min() == pytest.approx(32, abs=0.3)  # it bends between 16 and 64
    plt.close(figure)


def tables() -> dict[str, pd.DataFrame]:
    facts = {"model": "llama-3-8b", "weights": "synthetic"}
    verify_cost = [
        {
            **facts,
            "scheme": scheme,
            "draft_size": size,
            "context_length": 512,
            "time_ms": 10 + size + process,
            "p10_ms": 10 + size,
        }
        | {"p90_ms": 12 + size, "repeats": 20, "process": process, "protocol": "blocks", "block": 0, "place": 0}
        for process in range(2)
        for scheme in SOME_SCHEMES
        for size in (1, 8, 64)
    ]
    throughput = [
        {**facts, "acceptance": "replayed: trace", "scheme": scheme, "method": method, "task": task, "draft_ms": 1.0}
        | {"verify_ms": 4.0, "other_ms": 0.1, "accepted_length": 3.0, "tokens_per_s": 1000 / time_ms}
        for scheme in SOME_SCHEMES
        for method, time_ms in TIMES_MS.items()
        for task in ("code", "mathematics")
    ]
    quality = [
        {**facts, "scheme": scheme, "domain": domain, "perplexity": 10.0 if scheme == "fp16" else 11.0}
        for scheme in SOME_SCHEMES
        for domain in ("code", "prose")
    ]
    kernels = [
        {
            "weights": "synthetic",
            "implementation": "reference",
            "scheme": scheme,
            "layer": "qkv_proj",
            "draft_size": size,
        }
        | {"in_features": 4096, "out_features": 6144, "time_us": 50.0 + size}
        for scheme in SOME_SCHEMES
        for size in (1, 16)
    ]
    rows = {"verify_cost": verify_cost, "throughput": throughput, "quality": quality, "kernels": kernels}
    return {name: pd.DataFrame(table) for name, table in rows.items()}


def points(figure: plt.Figure, label: str) -> list[tuple[float, float]]:
    """The (x, y) of the line that a legend calls `label`, in the figure's first panel."""
    line = next(line for line in figure.axes[0].get_lines() if line.get_label() == label)
    return [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]


def test_fonts_are_embedded_and_the_width_is_one_column(tmp_path):
    figure, (axis,) = new_figure()
    axis.plot([1, 2], label="time (ms)")
    axis.set_xlabel("draft size")
    png = save_figure(figure, "line", tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert plt.imread(png).shape[1] == COLUMN_WIDTH_IN * 300
    pdf = (tmp_path / "line.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf


def test_marks_differ_in_colour_and_shape():
    for marks in (SCHEMES, MARKS):
        assert len({look.color for look in marks.values()}) == len(marks)
        assert len({look.marker for look in marks.values()}) == len(marks)
    assert mark("my-scheme", SCHEMES).label == "my-scheme"


def test_speedups_are_ratios_of_mean_times_per_token():
    frame = tables()["throughput"]
    slower = (frame["method"] == "eagle2") & (frame["task"] == "code") & (frame["scheme"] == "fp16")
    frame.loc[slower, "tokens_per_s"] = 1000 / 15  # 15 and 5 ms are 10 ms a token on average: no speedup
    assert points(throughput.speedups_by_scheme(frame), "EAGLE-2") == [(1.0, 0.0), (2.0, 1.0)]


def test_quality_is_relative_to_fp16():
    table = tables()["quality"]
    assert points(quality.draw(table), "prose") == [(pytest.approx(10.0), 0.0)]
    alone = quality.draw(table.query("scheme != 'fp16'"))  # then to the first there is
    assert points(alone, "prose") == []
    assert alone.axes[0].get_xlabel() == f"perplexity above {mark('w4a16-g128', SCHEMES).label} (%)"


def test_a_table_without_its_baseline_is_refused():
    with pytest.raises(SpecquantError, match="lacks autoregressive rows"):
        throughput.speedups_by_scheme(tables()["throughput"].query("method != 'autoregressive'"))


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SpecquantError, match=r"cannot write .*file"):
        save_figure(new_figure()[0], "line", tmp_path / "file")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize(("labels", "columns"), [(["short"] * 9, 3), (["much longer than a third"] * 9, 2)])
def test_a_legend_has_as_many_columns_as_the_figure_is_wide_for(labels, columns):
    figure, (axis,) = new_figure(height_in=2)
    for label in labels:
        axis.plot([1, 2], label=label)
    legend_above(figure, axis, columns=3)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len({text.get_window_extent().x0 for text in legend.get_texts()}) == columns
