"""LaTeX tables hold the numbers of their results, in the house's order."""

import pandas as pd

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
    assert r"Weights: trained. Acceptance: measured. Device: a 100\% CPU." in text


def test_passes_of_all_models_stand_beside_each_other():
    rows = [("a", 512, 1, 2.0), ("a", 512, 60, 3.0), ("b", 512, 1, 4.0), ("a", 2048, 1, 9.0), ("a", 512, 13, 9.0)]
    frame = pd.DataFrame(rows, columns=["model", "context_length", "draft_size", "time_ms"])
    text = latex(TABLES["pass_times"], frame.assign(scheme="fp16", weights="synthetic"), device="GPU")
    assert "FP16 & 2.00 & 3.00 & 4.00" in text
    assert "9.00" not in text


def test_plans_say_what_a_step_takes():
    frame = read_medians("data/recorded/h200/replayed.csv")
    text = latex(TABLES["replayed_plans"], frame, read_results("data/recorded/cpu/trees.csv"), device="GPU")
    hierarchy = frame[(frame.method == "hierarchical") & (frame.draft_size == 30)].iloc[0]
    (line,) = (line for line in text.splitlines() if "hierarchical (30 nodes, 3 iterations, 6 tokens or more)" in line)
    assert f"& {hierarchy.accepted_length:.2f} & {hierarchy.draft_ms:.2f} & {hierarchy.verify_ms:.2f} &" in line
    assert "Weights: synthetic. Acceptance: replayed. Device: GPU." in text
