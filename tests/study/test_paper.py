"""Figures and tables for a paper come from data alone, the same bytes each time."""

import json
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from specquant.cli import main
from specquant.decoding.drafters import MARKS
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.study import paper, read_results, write_results
from specquant.study.latex import RECORDED_TABLES
from specquant.study.paper import RECORDED_FIGURES, build_figures
from specquant.tables.intervals import sample
from specquant.tables.style import COLUMN_WIDTH_IN, MAIN_SCHEMES, PAGE_WIDTH_IN, SCHEMES, caption, ink, model_label
from tests.study.test_figures import tables

RECORDED = tables()
# What can be drawn from them and from published data.
DRAWN = [
    "verify_cost",
    "accepted_lengths",
    "speedups_by_scheme",
    "speedups_by_task",
    "step_times",
    "quality",
    "kernels",
]
DRAWN += ["verify_cost_llama-3-8b"]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A data/ folder with the published numbers and one table of each kind measured on one GPU."""
    shutil.copytree(project_root() / "data/published", tmp_path / "data/published")
    for name, frame in RECORDED.items():
        write_results(frame, tmp_path / "data/recorded/H200" / f"{name}.csv", {})
    return tmp_path / "data"


def test_figures_are_the_same_bytes_in_another_process(recorded, tmp_path):
    paths = build_figures(recorded, tmp_path / "one")
    program = f"from specquant.study.paper import build_figures; build_figures({str(recorded)!r}, sys.argv[1])"
    subprocess.run([sys.executable, "-c", f"import sys; {program}", tmp_path / "two"], check=True)
    assert [path.relative_to(tmp_path / "one").as_posix() for path in paths] == [
        "published_speedups.png",
        *(f"H200/{name}.png" for name in DRAWN),
    ]
    written = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*") if path.is_file())
    tables = [table for table in RECORDED_TABLES if table.table.removesuffix(".csv") in RECORDED]
    assert len(written) == 3 * (1 + len(DRAWN)) + len(tables) + 1
    for path in written:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


@pytest.fixture
def no_pictures(monkeypatch):
    """Figures are drawn but not saved as pictures, which takes most of the time."""
    monkeypatch.setattr(Figure, "savefig", lambda *arguments, **options: None)


def test_captions_say_what_the_numbers_rest_on(recorded, tmp_path, no_pictures):
    build_figures(recorded, tmp_path / "figures")
    text = (tmp_path / "figures/H200/speedups_by_scheme.txt").read_text()
    assert "Weights: synthetic. Acceptance: replayed: trace. Device: " in text
    assert text.strip() in (tmp_path / "figures/README.md").read_text()
    assert caption("Loss.", pd.DataFrame({"loss": [1.0]})) == "Loss."


def test_captions_say_how_often_and_with_which_kernels_tables_were_measured(tmp_path):
    frame, paths = pd.DataFrame({"value": [4.5]}), []
    record = {"device": "a GPU", "driver": "1", "clock": "events", "repeats": 20}
    for name, kernels in {"a": "1" * 64, "b": ["1" * 64, "2" * 64], "c": "1" * 64, "d": None}.items():
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].with_suffix(".json").write_text(json.dumps(record | {"kernels_sha256": kernels}))
    a, b, c, d = paths
    untimed = tmp_path / "e.csv"
    untimed.with_suffix(".json").write_text('{"device": "a GPU", "driver": "1"}')
    assert paper._differing_kernels(a, untimed) == ""
    assert paper._differing_kernels(a, c) == ""
    assert paper._differing_kernels(a, b) == " Kernels differ: a.csv 11111111; b.csv 11111111 and 22222222."
    told = " Kernels differ: d.csv not known: files differed from the commit; c.csv 11111111."
    assert paper._differing_kernels(d, c) == told
    assert sample(paper._counted(frame, a)) == "20 repeats in one process"
    assert sample(paper._counted(frame.assign(process=0), a)) == "1 process"


def test_the_figures_in_the_repository_are_those_of_its_data(tmp_path, no_pictures):
    rebuilt = build_figures("data", tmp_path)
    assert {path.stem for path in rebuilt if path.stem in {figure.name for figure in RECORDED_FIGURES}} == {
        figure.name for figure in RECORDED_FIGURES
    }
    supplements = {path.stem.removesuffix("_others") for path in rebuilt if path.stem.endswith("_others")}
    assert supplements - {"free_drafts"} == {figure.name for figure in RECORDED_FIGURES if figure.by_scheme}
    for path in rebuilt:
        there = project_root() / "figures" / path.relative_to(tmp_path)
        assert there.is_file(), f"run make figures: {path.name}"
        captions = path.with_suffix(".txt"), there.with_suffix(".txt")
        assert captions[0].read_text() == captions[1].read_text(), f"run make figures: {path.name}"


def test_a_broken_table_is_seen_before_any_figure_is_written(recorded, tmp_path):
    table = recorded / "recorded/H200/quality.csv"
    table.write_text(table.read_text().replace("perplexity", "entropy"))
    with pytest.raises(SpecquantError, match=r"quality\.csv lacks the column perplexity"):
        build_figures(recorded, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_a_figure_that_no_table_gives_any_more_is_told(recorded, tmp_path, no_pictures, capsys):
    left = build_figures(recorded, tmp_path / "figures")[-1].parent / "phases.png"
    left.touch()
    build_figures(recorded, tmp_path / "figures")
    assert f"{left} is left as it was" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values", [{"chances": "planned"}, {"intermediate": "llama-3-70b"}, {"intermediate_scheme": "w8a8"}]
)
def test_times_per_token_are_of_the_paper_s_plans_beside_8b(values):
    """So a table that has others alone refuses no figure."""
    (figure,) = (figure for figure in RECORDED_FIGURES if figure.name == "time_per_token")
    rows = read_results("data/recorded/h200/replayed.csv").query("chances == 'fitted'")
    assert len(figure.rows(rows)) == len(figure.rows(pd.concat([rows, rows.assign(**values)]))) > 0
    assert figure.rows(rows.assign(**values)).empty


def test_plans_of_a_latex_table_are_the_paper_s():
    (table,) = (table for table in RECORDED_TABLES if table.name == "replayed_plans")
    rows = read_results("data/recorded/h200/replayed.csv")
    assert table.rows(rows).chances.unique().tolist() == ["fitted"]


def test_one_figure_is_drawn_again_alone(recorded, tmp_path, no_pictures):
    """With its supplement, if it has one, on every card; a new one is drawn before it is listed."""
    drawn = build_figures(recorded, tmp_path / "figures", ["quality", "published_speedups"])
    assert [path.relative_to(tmp_path / "figures").as_posix() for path in drawn] == [
        "published_speedups.png",
        "H200/quality.png",
    ]
    left = [path for path in (tmp_path / "figures").rglob("*") if path.suffix in (".tex", ".md")]
    assert not left
    with pytest.raises(SpecquantError, match="there is no table to draw phases from in "):
        build_figures(recorded, tmp_path / "figures", ["phases"])


def test_the_caption_of_a_figure_that_is_drawn_again_is_the_listed_one(recorded, tmp_path, no_pictures):
    page = tmp_path / "figures/README.md"
    build_figures(recorded, tmp_path / "figures")
    before = page.read_text()
    build_figures(recorded, tmp_path / "figures", ["quality"])
    assert page.read_text() == before
    provenance = recorded / "recorded/H200/quality.json"
    device = json.loads(provenance.read_text())["device"]
    provenance.write_text(provenance.read_text().replace(device, "Another"))
    (path,) = build_figures(recorded, tmp_path / "figures", ["quality"])
    old = before.partition("(H200/quality.png)\n\n")[2].partition("\n")[0]
    new = path.with_suffix(".txt").read_text().strip()
    assert "Device: Another" in new
    assert page.read_text() == before.replace(old, new)


def test_a_figure_that_is_none_is_refused_with_those_that_are(tmp_path, capsys):
    assert main(["figures", "--only", "quality", "--only", "kernel"]) == 2
    assert capsys.readouterr().err.startswith("specquant: unknown figure 'kernel': choose one of published_speedups, ")


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(SpecquantError, match="no table to draw from"):
        build_figures(tmp_path, tmp_path / "figures")


def pictures():
    return sorted((project_root() / "figures").rglob("*.png"))


@pytest.mark.parametrize("path", pictures(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_figure_fits_one_column_or_two_and_its_caption_says_what_it_rests_on(path):
    height, width = plt.imread(path).shape[:2]
    assert width / 300 in (COLUMN_WIDTH_IN, PAGE_WIDTH_IN)
    assert height / 300 * 25.4 <= 100
    text = path.with_suffix(".txt").read_text()
    assert all(f"{fact}: " in text for fact in ("Weights", "Device")), text
    assert " n: " in text
    assert "Model: " in text or "Llama-3-70B" in text


@pytest.mark.parametrize(
    "figure", [figure for figure in RECORDED_FIGURES if figure.model], ids=lambda figure: figure.name
)
def test_a_caption_names_the_one_model_that_is_drawn(figure):
    told = [path.read_text() for path in (project_root() / "figures").glob(f"h*/{figure.name}*.txt")]
    assert told
    assert all(f"Model: {model_label(figure.model)}. Weights" in text for text in told)


def figure_kinds(figure):
    return ("", "_others") if figure.by_scheme else ("",)


OF_PASSES = [figure for figure in RECORDED_FIGURES if figure.table == "verify_cost.csv"]


@pytest.mark.parametrize("figure", OF_PASSES, ids=lambda figure: figure.name)
def test_n_is_of_the_rows_that_are_drawn_and_of_no_other(figure):
    """Of medians, too, which have lost the processes."""
    folder, counted = project_root() / "data/recorded/h200", []
    for table in ("verify_cost", *(Path(path).stem for path in figure.other_tables if "recorded/GPU" in path)):
        rows = figure.rows(read_results(folder / f"{table}.csv"))
        if "process" in rows:
            keys = [key for key in ("model", "scheme", "method", "context_length") if key in rows]
            counted += [(name, rows.process.nunique()) for name, rows in (rows.groupby(keys) if keys else [((), rows)])]
    for path in (project_root() / "figures/h200" / f"{figure.name}{which}.txt" for which in figure_kinds(figure)):
        main = not path.stem.endswith("_others")  # all others are drawn there, beside FP16
        drawn = [
            n
            for name, n in counted
            if not figure.by_scheme or len(name) < 2 or name[1] == "fp16" or (name[1] in MAIN_SCHEMES) == main
        ]
        told = f"{max(drawn)} processes" if len({*drawn}) == 1 else f"{min(drawn)} to {max(drawn)} processes"
        assert f" n: {told}." in path.read_text(), path.name


def test_words_in_the_colour_of_a_line_can_be_read_on_white():
    assert ink("#000000") == "#000000"
    for look in (*SCHEMES.values(), *MARKS.values()):
        shares = [
            channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
            for channel in to_rgb(ink(look.color))
        ]
        assert 1.05 / (np.dot([0.2126, 0.7152, 0.0722], shares) + 0.05) >= 4.5, look.label


def test_a_panel_has_four_schemes_and_the_supplement_the_others_beside_fp16():
    figure = next(figure for figure in RECORDED_FIGURES if figure.by_scheme)
    frame = pd.DataFrame({"scheme": ["fp16", "w8a8", "w4a8-qoq", "w4a16-g128"]})
    (main, some, _), (other, rest, text) = figure.parts(frame)
    assert (main, other) == (figure.name, f"{figure.name}_others")
    assert some.scheme.tolist() == ["fp16", "w8a8", "w4a16-g128"]
    assert rest.scheme.tolist() == ["fp16", "w4a8-qoq"]
    assert text.endswith("Supplement: the other schemes, beside FP16.")
    assert len([*figure.parts(frame.head(2))]) == 1


# What people with deuteranopia and protanopia see of linear RGB: Machado, Oliveira and Fernandes, IEEE TVCG 15 (2009).
SEEN = {
    "all": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


@pytest.mark.parametrize("eyes", SEEN)
@pytest.mark.parametrize("marks", [{name: SCHEMES[name] for name in MAIN_SCHEMES}, MARKS], ids=["schemes", "methods"])
def test_colours_differ_for_all_eyes_and_shapes_in_grey(marks, eyes):
    looks = list(marks.values())
    linear = [np.power(to_rgb(look.color), 2.2) for look in looks]
    seen = [np.power(np.clip(np.asarray(SEEN[eyes]) @ color, 0, 1), 1 / 2.2) for color in linear]
    for (one, first), (other, second) in combinations(zip(looks, seen, strict=True), 2):
        assert np.linalg.norm(first - second) > 0.12, (one.label, other.label)
        assert one.marker != other.marker
