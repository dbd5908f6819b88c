"""The tables of data/recorded/h200/README.md are those of the CSVs beside it."""

import shutil

import pandas as pd
import pytest

from specquant.errors import SpecquantError
from specquant.files import project_root, with_part
from specquant.planning.acceptance import Shapes
from specquant.study import read_results, recorded_tables
from specquant.study.claims import HEADS
from specquant.study.recorded_tables import (
    PAGE,
    adaptive,
    adaptive_runs,
    markers,
    passes,
    planted,
    replayed,
    settling,
    told_tables,
)

RECORDED = project_root() / "data/recorded"


def test_the_readme_has_what_the_tables_say():
    """Run `specquant claims` where it does not."""
    page = (project_root() / PAGE).read_text()
    for name, table in told_tables(RECORDED).items():
        assert with_part(page, markers(name), f"\n{table}\n", PAGE) == page, name


def test_a_new_recording_is_written_and_a_page_without_a_place_refused(tmp_path):
    shutil.copytree(RECORDED / "h200", tmp_path / "data/recorded/h200")
    shutil.copytree(RECORDED / "cpu", tmp_path / "data/recorded/cpu")

    def write():
        return recorded_tables.write_recorded_tables(told_tables(tmp_path / "data/recorded"), tmp_path)

    assert write() == []
    rounds = tmp_path / "data/recorded/h200/rounds.csv"
    pd.read_csv(rounds).assign(time_ms=7.25).to_csv(rounds, index=False)
    assert write() == [tmp_path / PAGE]
    assert "| 7.25 (7.25 to 7.25) |" in (tmp_path / PAGE).read_text()
    assert write() == []
    (tmp_path / PAGE).write_text("without a place")
    with pytest.raises(SpecquantError, match="lacks the lines <!-- table passes"):
        write()


@pytest.mark.parametrize(
    ("name", "left_out", "told"),
    [
        ("drafting", "model == 'llama-3-8b'", "of .*llama-3-8b"),
        ("verify_cost", "draft_size == 60", "of llama-3-70b, fp16, 512, 60"),
        ("attention", "implementation == 'torch'", "of torch"),
        (
            "attention",
            "implementation == 'torch' and context_length == 512",
            r'of the line "512 tokens .*" of table attention',
        ),
        ("adaptive", "choice == 'static' and draft_size == 60", r'of the line "70B .*" of table adaptive'),
        ("settling", "what == 'draft'", "of draft, 0"),
    ],
)
def test_a_table_that_would_lack_numbers_is_refused_by_the_recorded_ones_name(tmp_path, name, left_out, told):
    recorded = tmp_path / "recorded"
    for folder in ("h200", "cpu"):
        shutil.copytree(RECORDED / folder, recorded / folder)
    rows = pd.read_csv(recorded / f"h200/{name}.csv")
    rows.drop(rows.query(left_out).index).to_csv(recorded / f"h200/{name}.csv", index=False)
    do = rf"that are needed: measure them \(specquant bench {name.replace('_', '-')}"
    with pytest.raises(SpecquantError, match=rf"h200/{name}\.csv.* lacks rows {told}.* {do}"):
        told_tables(recorded)


def of_passes(model, scheme, process, one, wide):
    about = {"model": model, "scheme": scheme, "weights": "synthetic", "context_length": 512, "protocol": "blocks"}
    about |= {"process": process, "floor_ms": 1.0}
    return [about | {"draft_size": size, "time_ms": time_ms} for size, time_ms in ((1, one), (60, wide))]


def test_passes_have_an_interval_where_there_are_several_processes_and_a_place_where_there_is_none():
    rows = [*of_passes("llama-3-8b", "w8a8", 0, 2.0, 3.0), *of_passes("llama-3-8b", "w8a8", 1, 4.0, 5.0)]
    rows += of_passes("llama-3-70b", "fp16", 0, 2.0, 2.5) + of_passes("llama-3-1b", "fp16", 0, 1.0, 1.0)
    told = passes(pd.DataFrame(rows), {"70B": ("llama-3-70b", 512), "8B": ("llama-3-8b", 512)}).splitlines()
    assert told[2] == "| fp16 | 2.00 / 2.50, 1.25, 50% | - |"
    assert told[3] == "| w8a8 | - | 3.00 / 4.00, 1.38 (1.25 to 1.50), 38% |"
    assert told[-1] == "n: 1 to 2 processes."


def test_settling_compares_with_settled_passes_and_drafts_alone():
    about = {"model": "llama-3-8b", "scheme": "fp16", "process": 0, "clock_mhz": 1980.0}
    times = {("pass", 1, 0.0): 2.0, ("pass", 64, 0.0): 3.0, ("pass", 64, 50.0): 2.5}
    times |= {("draft", 0, 0.0): 1.0, ("draft", 60, 0.0): 1.2, ("verify", 60, 0.0): 2.8}
    rows = [
        about | {"what": what, "behind": behind, "idle_ms": idle, "position": position, "time_ms": time_ms}
        for (what, behind, idle), time_ms in times.items()
        for position in (0, 30)
    ]
    assert settling(pd.DataFrame(rows)).splitlines()[2] == "| 8B fp16 | 1.50 | 1.25 | 1.00 | 1.20 | 5.0 |"


def of_adaptive(process, adaptive_speed, *static):
    about = {"model": "llama-3-8b", "scheme": "w8a8", "process": process}
    run = about | {"choice": "adaptive", "draft_size": 0, "iterations": 6, "mean_draft_size": 16.0}
    return [run | {"tokens_per_s": adaptive_speed}] + [
        about
        | {"choice": "static", "draft_size": size, "iterations": iterations, "mean_draft_size": float(size)}
        | {"tokens_per_s": speed}
        for size, iterations, speed in static
    ]


def test_a_size_that_the_prices_named_is_none_of_the_six():
    rows = of_adaptive(0, 90.0, (16, 3, 100.0), (60, 6, 60.0)) + of_adaptive(
        1, 88.0, (16, 3, 80.0), (60, 6, 44.0), (16, 5, 110.0)
    )
    runs = adaptive_runs(pd.DataFrame(rows))
    assert runs[recorded_tables.OF_SIX].tolist() == pytest.approx([0.9, 1.1])
    assert runs[recorded_tables.OF_60].tolist() == pytest.approx([1.5, 2.0])
    assert runs[recorded_tables.OF_ALL].tolist() == pytest.approx([0.9, 0.8])
    told = "| 8B w8a8 | 1.00 (0.90 to 1.10) | 1.75 (1.50 to 2.00) | 0.85 (0.80 to 0.90) | 16.0 (16.0 to 16.0) |"
    assert adaptive(pd.DataFrame(rows)).splitlines()[2] == told


def test_plans_with_other_heads_and_the_planner_s_plans_have_rows_of_their_own():
    rows = read_results(RECORDED / "h200/replayed.csv")
    shapes = Shapes.of(read_results(RECORDED / "cpu/trees.csv"))
    rows = rows[rows.head_scheme == HEADS]
    with_others = pd.concat([rows, rows[rows.chances == "fitted"].assign(head_scheme="fp16")])
    both, alone = (replayed(of, shapes).splitlines() for of in (with_others, rows))
    assert both[: len(alone) - 2] == alone[:-2]
    papers = [line for line in alone if line.startswith(f"| the paper's plans, heads in {HEADS}: ")]
    planners = [line for line in alone if line.startswith(f"| the planner's plans, heads in {HEADS}: ")]
    assert alone[2:-2] == papers + planners
    assert [line.replace(HEADS, "fp16") for line in papers] == both[len(alone) - 2 : -2]


@pytest.mark.parametrize(
    "values",
    [
        {"chances": "swept", "head_chance": 0.9},
        {"chances": "traced"},
        {"model": "llama-3-8b"},
        {"intermediate_scheme": "w8a8"},
        {"head_vocabulary": 1024},
    ],
)
def test_replays_of_something_else_change_no_row_of_plans(values):
    """`specquant record` sweeps chances into the same table."""
    rows, shapes = read_results(RECORDED / "h200/replayed.csv"), Shapes.of(read_results(RECORDED / "cpu/trees.csv"))
    others = rows.assign(verify_ms=2 * rows.verify_ms, **values)
    assert replayed(pd.concat([rows, others]), shapes) == replayed(rows, shapes)
    with pytest.raises(KeyError, match="llama-3-70b, w4a16-g128, llama-3-8b"):
        replayed(others[:0], shapes)


def test_plans_are_set_against_eagle2_of_their_own_kind():
    """The paper's against its tree of 24 nodes, the planner's against its only one."""
    rows = read_results(RECORDED / "h200/replayed.csv").query(f"head_scheme == '{HEADS}'")
    table = replayed(rows, Shapes.of(read_results(RECORDED / "cpu/trees.csv"))).splitlines()
    alike = [line for line in table if line.endswith("| 1.00 (1.00 to 1.00) |")]
    assert ["24 nodes" in line for line in alike] == [True, False]


def test_processes_are_counted_for_each_kind_of_kernels():
    rows = pd.read_csv(RECORDED / "h200/planted.csv")
    counted = rows[rows.codes == "uniform"].groupby(["model", "scheme", "row_invariant"]).process.nunique()
    assert f"n: {counted.min()} to {counted.max()} processes." in planted(rows)
