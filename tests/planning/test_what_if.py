"""What the sliders of the planner's notebook move."""

from pathlib import Path

import pandas
import pytest

from specquant.decoding.method import Plan
from specquant.errors import SpecquantError
from specquant.planning.acceptance import FITTED_AT, Chances, Shapes
from specquant.planning.recorded import RecordedCosts
from specquant.planning.what_if import WhatIf, draw_refusal, draw_what_if
from specquant.study.display import picture
from specquant.study.sliders import answer
from specquant.tables.results import read_results

MEASURED = "H200, measured"
CHOSEN = {"scheme": "w4a16-g128", "card": MEASURED, "draft_size": 24, "head": 0.8, "inner_head": 0.8, "agreement": 0.86}


@pytest.fixture(scope="module")
def what_if():
    costs = RecordedCosts.read("data/recorded/h200")
    shapes = Shapes.of(read_results("data/recorded/cpu/trees.csv"))
    theirs = costs.planner("llama-3-70b", "llama-3-8b", "w8a8", "w4a16-g128")
    return WhatIf(costs, "H200", shapes, "llama-3-70b", "llama-3-8b", "w4a16-g128", {("theirs", "w4a16-g128"): theirs})


def test_speeds_are_the_planner_s_at_the_best_iterations(what_if):
    chances = Chances([0.8], [0.8], 0.86)
    speeds = what_if.speeds(MEASURED, "w4a16-g128", chances).set_index(["method", "draft_size"])
    planner, statistics = what_if.planner(MEASURED, "w4a16-g128"), what_if.shapes.statistics(chances, FITTED_AT)
    told = [planner.predict(Plan("eagle2", 24, count), statistics)["tokens_per_s"] for count in (2, 3, 4, 6, 8)]
    known = [count for count in (2, 3, 4, 6, 8) if count in planner.target.draft_ms.index]
    assert known  # others are interpolated or left out
    assert speeds.tokens_per_s["eagle2", 24] == pytest.approx(max(told))
    assert speeds.speedup["autoregressive", 0] == 1
    assert {method for method, _ in speeds.index} == {"autoregressive", "vanilla", "eagle2", "hierarchical"}


def test_each_choice_moves_the_figure(what_if):
    pictures = {picture(answer(what_if, **CHOSEN)[0]).data}
    moved = {"scheme": "w8a8", "card": "A100, by its data sheet", "draft_size": 48, "head": 0.6, "agreement": 0.7}
    for name, value in (moved | {"inner_head": 0.5}).items():
        pictures.add(picture(answer(what_if, **CHOSEN | {name: value})[0]).data)
    assert len(pictures) == 7


@pytest.mark.parametrize("card", [MEASURED, "A100, by its data sheet"])
def test_a_moved_slider_reads_no_table_again_and_seeks_no_layout(what_if, card, monkeypatch):
    chosen = CHOSEN | {"card": card}
    answer(what_if, **chosen)
    planner = what_if.planner(card, CHOSEN["scheme"])
    for module, name in ((pandas, "read_csv"), (Path, "read_text"), (Path, "read_bytes")):
        monkeypatch.setattr(module, name, lambda *arguments, **options: pytest.fail("a table is read again"))
    figure, _ = answer(what_if, **chosen | {"agreement": 0.5})
    assert what_if.planner(card, CHOSEN["scheme"]) is planner
    assert figure.get_layout_engine() is None  # to find a layout would take half of the drawing


def test_names_stand_beside_lines_with_the_speedup_at_the_chosen_size(what_if):
    speeds = what_if.speeds(MEASURED, "w4a16-g128", Chances([0.8], [0.8], 0.86))
    (axis,) = draw_what_if(speeds, 48).axes
    at = speeds.set_index(["method", "draft_size"]).speedup
    told = {text.get_text() for text in axis.texts}
    assert f"EAGLE-2 {at['eagle2', 48]:.2f}" in told
    assert f"hierarchical {at['hierarchical', 30]:.2f}" in told  # no inner tree is larger
    assert "autoregressive 1.00" in told


def test_its_caption_says_how_many_processes_the_chosen_scheme_rests_on(what_if):
    passes, drafting, rounds, replayed = (
        read_results(f"data/recorded/h200/{name}.csv") for name in ("verify_cost", "drafting", "rounds", "replayed")
    )
    passes = passes[passes.context_length == 512]
    for scheme in ("w4a16-g128", "w8a8"):
        counted = passes[passes.scheme == scheme].groupby("model").process.nunique().tolist()
        counted += [rounds.process.nunique(), replayed.process.nunique()]
        counted += drafting[drafting.head_scheme == "w4a16-g128"].groupby("model").process.nunique().tolist()
        text = f" n: {min(counted)} to {max(counted)} processes."
        assert answer(what_if, **CHOSEN | {"scheme": scheme})[1].endswith(text)
    assert answer(what_if, **CHOSEN | {"card": "theirs"})[1].endswith(" n: not told.")
    assert answer(what_if, **CHOSEN | {"card": "A100, by its data sheet"})[1].endswith(" n: 0, nothing was measured.")


def test_what_is_not_known_is_said_where_the_figure_would_be(what_if):
    with pytest.raises(SpecquantError, match="theirs was not measured in w8a8: choose another scheme or card"):
        what_if.planner("theirs", "w8a8")
    figure, text = answer(what_if, **CHOSEN | {"card": "theirs", "scheme": "w8a8"})
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "theirs was not measured in w8a8: choose another scheme or card"
    ]
    assert text.startswith("Nothing is predicted. Model: Llama-3-70B and Llama-3-8B, W8A8.")
    assert not draw_refusal("no").axes[0].axison


def test_cards_and_schemes_that_can_be_chosen(what_if):
    assert what_if.cards[:3] == [MEASURED, "theirs", "A100, by its data sheet"]
    assert {"fp16", "w8a8", "w4a16-g128", "w4a8-qqq"} <= {*what_if.schemes}
    assert what_if.planner("theirs", "w4a16-g128") is what_if.others["theirs", "w4a16-g128"]
    with pytest.raises(SpecquantError, match="multiplies no fp8"):
        what_if.planner("A100, by its data sheet", "fp8")
