"""LaTeX tables hold the numbers of their results, in the house's order."""

import re
import shutil
import subprocess

import pandas as pd
import pytest

from specquant.files import project_root
from specquant.planning.acceptance import Shapes
from specquant.planning.replayed import fitted_speedups
from specquant.study.latex import RECORDED_TABLES, latex
from specquant.tables.results import read_medians, read_results

TABLES = {table.name: table for table in RECORDED_TABLES}


def test_schemes_are_rows_in_the_order_of_figures():
    frame = pd.DataFrame(
        {"scheme": ["w8a8", "fp16"] * 2, "method": ["eagle2"] * 2 + ["vanilla"] * 2, "accepted_length": [3.0, 4, 1, 2]}
    ).assign(weights="trained", acceptance="measured")
    text = latex(TABLES["accepted_lengths"], frame, device="a 100% CPU")
    lines = [line.strip() for line in text.splitlines()]
    assert lines.index("FP16 & 2.00 & 4.00 \\\\") < lines.index("W8A8 & 1.00 & 3.00 \\\\")
    assert "& vanilla & EAGLE-2 \\\\" in text
    assert text.splitlines()[9:12] == ["scheme & vanilla & EAGLE-2 \\\\", "\\midrule", "FP16 & 2.00 & 4.00 \\\\"]
    assert r"Weights: trained. Acceptance: measured. Device: a 100\% CPU." in text


def test_passes_of_all_models_stand_beside_each_other():
    rows = [("a", 512, 1, 2.0), ("a", 512, 60, 3.0), ("b", 512, 1, 4.0), ("a", 2048, 1, 9.0), ("a", 512, 13, 9.0)]
    frame = pd.DataFrame(rows, columns=["model", "context_length", "draft_size", "time_ms"])
    frame = TABLES["pass_times"].rows(frame.assign(scheme="fp16", weights="synthetic"))
    text = latex(TABLES["pass_times"], frame, device="GPU")
    assert "FP16 & 2.0 & 3.0 & 4.0" in text
    assert "9.0" not in text


def test_plans_say_what_a_step_takes():
    table, trees = TABLES["replayed_plans"], read_results("data/recorded/cpu/trees.csv")
    every = read_results("data/recorded/h200/replayed.csv")
    every = pd.concat([every, every[every.process == 0].assign(head_scheme="fp16")])
    recorded = table.rows(every)
    assert 0 < len(recorded) < len(every)  # with one kind of heads
    text = latex(table, recorded, trees, device="GPU")
    frame = table.rows(read_medians("data/recorded/h200/replayed.csv"))
    hierarchy = frame[(frame.method == "hierarchical") & (frame.draft_size == 30)].iloc[0]
    (line,) = (line for line in text.splitlines() if line.startswith("hierarchical, 30, 6 &"))
    assert f"& {hierarchy.accepted_length:.2f} & {hierarchy.draft_ms:.2f} & {hierarchy.verify_ms:.2f} &" in line
    gain = fitted_speedups(recorded, Shapes.of(trees))["median"].xs(
        ("hierarchical", 30), level=("method", "draft_size")
    )
    assert line.endswith(f"& {gain.iloc[0]:.2f} \\\\")  # a ratio is of one process
    assert "Weights: synthetic. Acceptance: replayed. Device: GPU." in text


def millimetres(text: str) -> float:
    """How wide a table of 8 points is at most: 1.5 mm a letter of the longest cell, and 2.2 mm between columns."""
    lines = [line.removesuffix("\\\\").split(" & ") for line in text.splitlines() if line.endswith("\\\\")]
    lines = [line for line in lines if "multicolumn" not in "".join(line)]
    columns = zip(*(line for line in lines if len(line) == len(lines[-1])), strict=True)
    return sum(1.5 * max(len(cell.strip()) for cell in column) + 2.2 for column in columns)


def written():
    return sorted((project_root() / "figures").glob("*/*.tex"))


@pytest.mark.parametrize("path", written(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_table_needs_booktabs_alone_and_one_column(path):
    text = path.read_text()
    assert text.startswith("\\begin{table}\n\\centering\n")
    assert set(re.findall(r"\\(\w*rule|multirow|cline|hline)", text)) == {"toprule", "midrule", "bottomrule"}
    assert "llama-3" not in text
    assert not re.search(r"[a-z]\\_[a-z]", text.replace(r"\label", ""))
    assert millimetres(text) <= 85


def test_every_label_is_there_once():
    labels = [re.search(r"\\label\{(.*)\}", path.read_text())[1] for path in written()]
    assert len({*labels}) == len(labels) > 5


def test_a_table_of_several_targets_names_them_once_without_multirow():
    frame = TABLES["replayed_plans"].rows(read_results("data/recorded/h200/replayed.csv"))
    both = pd.concat([frame, frame.assign(model="llama-3-8b")])
    text = latex(
        TABLES["replayed_plans"], both, read_results("data/recorded/cpu/trees.csv"), device="GPU", folder="h200"
    )
    assert text.count("Llama-3-8B, W4A16-g128 &") == 1
    assert "multirow" not in text
    assert r"\label{tab:h200:replayed_plans}" in text


PAGE = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs}
\setlength{\columnwidth}{85mm}\setlength{\hsize}{85mm}\setlength{\linewidth}{85mm}
\newsavebox{\onetable}
\begin{document}
\typeout{here begin our tables}
"""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here: install texlive-latex-base")
def test_all_tables_are_typeset_on_one_page_width(tmp_path):
    """By LaTeX itself: booktabs alone, no label twice, and no tabular wider than a column of 85 mm."""
    inputs = []
    for path in written():
        tabular = re.search(r"\\begin\{tabular\}.*\\end\{tabular\}", path.read_text(), re.DOTALL)[0]
        box = "\\sbox{\\onetable}{\\footnotesize\\setlength{\\tabcolsep}{3pt}%\n" + tabular + "}"
        inputs += [path.read_text(), box, "\\typeout{width " + path.stem + " \\the\\wd\\onetable}"]
    (tmp_path / "page.tex").write_text(PAGE + "\n".join(inputs) + "\n\\end{document}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    for _ in range(2):  # labels are known in the second
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "page.log").read_text(errors="replace")
    assert "multiply defined" not in log
    assert "Missing character" not in log
    widths = {name: float(points) for name, points in re.findall(r"width (\S+) ([\d.]+)pt", log)}
    assert {path.stem for path in written()} == set(widths)
    assert {name: width for name, width in widths.items() if width > 85 / 25.4 * 72.27} == {}
