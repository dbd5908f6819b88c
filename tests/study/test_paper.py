"""Figures and tables for a paper come from data alone, the same bytes each time."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.study import write_results
from specquant.study.latex import RECORDED_TABLES
from specquant.study.paper import RECORDED_FIGURES, build_figures
from specquant.tables.style import caption
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


def test_captions_say_what_the_numbers_rest_on(recorded, tmp_path):
    build_figures(recorded, tmp_path / "figures")
    text = (tmp_path / "figures/H200/speedups_by_scheme.txt").read_text()
    assert "Weights: synthetic. Acceptance: replayed: trace. Device: " in text
    assert text.strip() in (tmp_path / "figures/README.md").read_text()
    assert caption("Loss.", pd.DataFrame({"loss": [1.0]})) == "Loss."


def test_the_figures_in_the_repository_are_those_of_its_data(tmp_path):
    rebuilt = build_figures("data", tmp_path)
    assert {path.stem for path in rebuilt} == {figure.name for figure in RECORDED_FIGURES}
    for path in rebuilt:
        assert (project_root() / "figures" / path.relative_to(tmp_path)).is_file(), f"run make figures: {path.name}"


def test_a_broken_table_is_seen_before_any_figure_is_written(recorded, tmp_path):
    table = recorded / "recorded/H200/quality.csv"
    table.write_text(table.read_text().replace("perplexity", "entropy"))
    with pytest.raises(SpecquantError, match=r"quality\.csv lacks the column perplexity"):
        build_figures(recorded, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(SpecquantError, match="no table to draw from"):
        build_figures(tmp_path, tmp_path / "figures")
