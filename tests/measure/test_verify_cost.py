"""Verify time: which passes are timed, behind which context, in which order. How long they take is the machine's."""

import random
import re

import pandas as pd
import pytest
import torch

from specquant.errors import SpecquantError
from specquant.measure import verify_cost
from specquant.measure.measure import record
from specquant.measure.verify_cost import MEASURE, Parameters, draw, draw_growths, time_passes
from specquant.models import synthetic
from specquant.models.loading import load_model
from specquant.study import read_results
from specquant.tables.verify_cost import pass_growth, pass_times

FEW = {"blocks": 1, "repeats": 2, "warm_up_passes": 1, "warm_up_ms": 0.0, "device": "cpu"}


@pytest.fixture(scope="module")
def model(small_models):
    return load_model(small_models / "target", scheme="w8a8")


@pytest.fixture
def verify(small_models, tmp_path, in_process):
    def run(*schemes, out="out", model=small_models / "target", **options):
        options = FEW | {"draft_sizes": (1, 2), "contexts": (8,), "processes": 2} | options
        parameters = Parameters(str(model), schemes, keep_targets_in=str(tmp_path / "targets"), **options)
        return record(MEASURE, parameters, tmp_path / out)

    run.ordered = in_process
    return run


def test_passes_of_a_size_stand_together_behind_the_same_context(model, monkeypatch):
    """Each pass is a draft's own, with the LM head."""
    passes, logits = [], []
    forward, head = model.forward, model.logits

    def run(tokens, depths, cache, mask):
        passes.append((len(tokens), cache.length, depths.tolist()))
        return forward(tokens, depths, cache, mask)

    monkeypatch.setattr(model, "forward", run)
    monkeypatch.setattr(model, "logits", lambda features: logits.append(len(features)) or head(features))
    parameters = Parameters("small", ("w8a8",), "synthetic", (4, 2), processes=1, **FEW)
    table = time_passes(model, parameters, 7, "blocks", random.Random(0))
    prefill, *timed = passes
    assert prefill == (7, 0, list(range(7)))
    first, second = table.draft_size
    assert {first, second} == {2, 4}
    expected = [4, 2] + [first] * 3 + [second] * 3  # each once to see that its results are finite
    assert timed == [(size, 7, list(range(size))) for size in expected]
    assert logits == expected
    turns = time_passes(model, parameters, 7, "turns", random.Random(0))
    assert turns.draft_size.tolist() == [4, 2]
    assert logits[len(expected) + 2 :] == [4, 2] * 5


@pytest.mark.parametrize(
    ("draft_sizes", "context_length"), [((1, 97), 32), ((0, 1), 32), ((-1,), 32), ((), 32), ((1,), 0), ((1,), 128)]
)
def test_what_does_not_fit_is_refused(model, draft_sizes, context_length):
    parameters = Parameters("small", ("w8a8",), "synthetic", draft_sizes, **FEW)
    with pytest.raises(SpecquantError, match="do not fit: all must be at least 1 and context plus draft at most 128"):
        time_passes(model, parameters, context_length, "blocks", random.Random(0))


def test_context_and_draft_may_fill_the_model(model):
    parameters = Parameters("small", ("w8a8",), "synthetic", (96,), **FEW)
    assert len(time_passes(model, parameters, 32, "blocks", random.Random(0))) == 1


@pytest.mark.parametrize("weights", ["trained", "synthetic"])
def test_there_is_a_row_for_each_scheme_context_process_and_draft_size(verify, weights):
    table = read_results(verify("fp16", "w4a8-qqq", weights=weights, contexts=(8, 16)))
    rows = list(table[["scheme", "context_length", "process", "draft_size"]].itertuples(index=False, name=None))
    assert rows == [(s, c, p, d) for s in ("fp16", "w4a8-qqq") for c in (8, 16) for p in (0, 1) for d in (1, 2)]
    assert set(table.model) == {"target"}
    assert set(table.weights) == {weights}
    assert set(table.protocol) == {"blocks"}
    assert table.launch_us.isna().all()  # on a CPU the call is the pass


def test_a_second_call_measures_only_what_is_missing(verify):
    before = read_results(verify("fp16"))
    verify.ordered.clear()
    path = verify("fp16", "w8a8", processes=3, turns=True)
    asked = {(unit["scheme"], unit["process"], unit["protocol"]) for unit in verify.ordered}
    everything = {(s, p, t) for s in ("fp16", "w8a8") for p in (0, 1, 2) for t in ("blocks", "turns")}
    assert asked == everything - {("fp16", 0, "blocks"), ("fp16", 1, "blocks")}
    after = read_results(path)
    kept = after[(after.scheme == "fp16") & (after.process < 2) & (after.protocol == "blocks")]
    pd.testing.assert_frame_equal(kept.reset_index(drop=True), before)
    verify.ordered.clear()
    verify("fp16", "w8a8")
    assert verify.ordered == []


def test_schemes_before_an_interruption_are_kept(verify, monkeypatch):
    original = verify_cost.time_passes

    def interrupt(model, *rest):
        if model.scheme.name == "w8a8":
            raise KeyboardInterrupt
        return original(model, *rest)

    monkeypatch.setattr(verify_cost, "time_passes", interrupt)
    # The order of schemes is drawn: of several processes some meet the first one first.
    with pytest.raises(KeyboardInterrupt):
        verify("fp16", "w8a8", weights="synthetic", processes=1, seed=1)
    monkeypatch.undo()
    path = verify("fp16", weights="synthetic", processes=1, seed=1)
    assert set(read_results(path).scheme) == {"fp16"}


def test_a_scheme_that_does_not_fit_is_left_out_with_a_sentence(verify, monkeypatch, capsys):
    fits = synthetic.memory_needed

    def needed(config, scheme, *rest):
        memory = fits(config, scheme, *rest)
        return memory._replace(weights=10**15) if scheme == "fp16" else memory

    monkeypatch.setattr(synthetic, "memory_needed", needed)
    assert set(read_results(verify("fp16", "w8a8", weights="synthetic")).scheme) == {"w8a8"}
    assert "target in fp16 is left out: 2 layers of 256 in fp16 with a context of 10 need" in capsys.readouterr().err
    with pytest.raises(SpecquantError, match=r"verify_cost\.csv would hold no row: nothing was measured"):
        verify("fp16", weights="synthetic", out="other")


@pytest.mark.parametrize("other", [{"repeats": 3}, {"blocks": 2}, {"draft_sizes": (1, 2, 4)}, {"warm_up_ms": 1.0}])
def test_times_of_other_parameters_are_not_mixed(verify, other):
    verify("fp16")
    ((name, value),) = other.items()
    told = re.escape(str(list(value) if isinstance(value, tuple) else value))
    with pytest.raises(SpecquantError, match=f"holds rows measured with {name} .*, not {told}: choose"):
        verify("w8a8", **other)


def test_a_name_has_no_trained_weights(tmp_path):
    parameters = Parameters("llama-3-8b", ("fp16",), weights="trained", device="cpu")
    with pytest.raises(SpecquantError, match="llama-3-8b is a name, without weights"):
        record(MEASURE, parameters, tmp_path)


@pytest.mark.parametrize("wrong", [{"processes": 0}, {"blocks": 0}, {"repeats": 0}, {"warm_up_ms": float("nan")}])
def test_numbers_out_of_range_are_refused_before_anything_is_measured(small_models, tmp_path, wrong):
    ((name, value),) = wrong.items()
    parameters = Parameters(str(small_models / "target"), ("fp16",), **FEW | {"processes": 1} | wrong)
    with pytest.raises(SpecquantError, match=f"{name} is {value}: give at least"):
        record(MEASURE, parameters, tmp_path)


def recorded(growing: dict[int, float], order: list[int]) -> pd.DataFrame:
    """Two blocks of each draft size in three processes, the second slower by a tenth, in some order of measurement."""
    about = {"model": "m", "scheme": "s", "weights": "synthetic", "context_length": 8, "protocol": "blocks"}
    rows = [
        about | {"process": process, "block": block, "draft_size": size, "place": place}
        | {"time_ms": growing[size] * (1 + 0.1 * process)}
        for process in range(3)
        for place, (size, block) in enumerate((size, block) for size in order for block in (0, 1))
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(p10_ms=1.0, p90_ms=9.0, repeats=5)


def test_ratios_are_of_blocks_of_the_same_process_whatever_their_order():
    growing = {1: 2.0, 16: 3.0, 60: 5.0}
    table = recorded(growing, [1, 16, 60])
    told = pass_growth(table).droplevel([0, 1, 2, 3])
    assert told["median"].to_dict() == pytest.approx({1: 1.0, 16: 1.5, 60: 2.5})
    assert told.low.to_dict() == told.high.to_dict()  # slow processes are slow in all sizes
    times = pass_times(table).droplevel([0, 1, 2, 3])
    assert times.loc[60].tolist() == pytest.approx([5.5, 5.0, 6.0, 3])
    shuffled = recorded(growing, [60, 1, 16]).sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(pass_growth(shuffled).sort_index(), pass_growth(table).sort_index())


def test_the_figure_is_relative_to_one_token_with_bars_over_processes():
    table = recorded({1: 2.0, 60: 5.0}, [1, 60])
    table.loc[(table.process == 2) & (table.draft_size == 60), "time_ms"] *= 1.2
    (axis,) = draw(table).axes
    line = axis.lines[0]
    assert line.get_xdata().tolist() == [1, 60]
    assert line.get_ydata().tolist() == pytest.approx([1, 2.5])
    bars = axis.containers[0].lines[2][0].get_segments()
    assert bars[1][:, 1].tolist() == pytest.approx([2.5, 3.0])


def test_no_panel_of_the_figure_cuts_off_a_line():
    """All share one axis, and the steepest comes last."""
    flat, steep = recorded({1: 2.0, 60: 2.1}, [1, 60]), recorded({1: 2.0, 60: 5.0}, [1, 60])
    for axis in draw(pd.concat([flat, steep.assign(context_length=8192)])).axes:
        assert axis.get_ylim()[1] > 2.5


def test_without_one_token_there_is_nothing_to_compare_with():
    with pytest.raises(SpecquantError, match="verify_cost of m in s has no row with draft_size 1"):
        draw(recorded({16: 3.0, 60: 5.0}, [16, 60]))


@pytest.mark.gpu
def test_on_a_gpu_rows_say_what_must_be_read_and_in_which_state(verify):
    table = read_results(
        verify("fp16", "w4a16-g128", weights="synthetic", device="cuda", warm_up_ms=100.0, repeats=500)
    )
    assert (table.floor_ms > 0).all()
    of = table.drop_duplicates("scheme").set_index("scheme").bytes
    assert of["fp16"] > of["w4a16-g128"]
    assert (table.clock_mhz > 100).all()
    assert (table.power_w > 10).all()
    assert (table.launch_us > 0).all()
    assert (table.launch_us < 1e3 * table.time_ms).all()


def test_models_in_half_precision_on_a_gpu_and_single_on_a_cpu(monkeypatch):
    assert Parameters("llama-3-8b", ("fp16",), device="cpu").same()["dtype"] == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("specquant.measure.parameters.device_name", lambda _: "GPU")
    assert Parameters("llama-3-8b", ("fp16",)).same()["dtype"] == "float16"


def test_passes_beside_each_other():
    ours = pd.DataFrame({"scheme": ["fp16"] * 2 + ["w8a8"] * 2, "draft_size": [1, 60] * 2, "time_ms": [2, 3, 1, 4]})
    theirs = ours[ours.scheme == "w8a8"].assign(time_ms=[5, 5])
    left, right = draw_growths({"ours": ours, "theirs": theirs}).axes
    assert [list(line.get_ydata()) for line in left.lines] == [[1, 1.5], [1, 4]]
    assert [list(line.get_ydata()) for line in right.lines] == [[1, 1]]
    assert (left.get_title(), right.get_title()) == ("ours", "theirs")
    low, high = left.get_ylim()
    assert low == 0.9
    assert high > 4  # whichever panel has the highest line


def test_the_second_panel_is_not_cut_off():
    flat, steep = (pd.DataFrame({"scheme": "fp16", "draft_size": [1, 60], "time_ms": [1, high]}) for high in (1.1, 9))
    figure = draw_growths({"ours": flat, "theirs": steep})
    assert all(axis.get_ylim()[1] > 9 for axis in figure.axes)


def test_growth_is_told_beside_the_paper_s_code_the_largest_first():
    times = {("llama-3-70b", "fp16"): (10, 11), ("llama-3-70b", "w8a8"): (5, 8), ("llama-3-8b", "fp16"): (2, 3)}
    rows = [
        {"model": model, "scheme": scheme, "weights": "synthetic", "context_length": 512, "process": process}
        | {"protocol": "blocks", "draft_size": size, "time_ms": time_ms + (size > 1) * process * time_ms / 10}
        for (model, scheme), both in times.items()
        for process in (0, 1)
        for size, time_ms in zip((1, 60), both, strict=True)
    ]
    theirs = pd.DataFrame({"model": "llama-3-70b", "scheme": "w8a8", "draft_size": [1, 60], "time_ms": [10.0, 12.5]})
    table = verify_cost.growth_table(pass_growth(pd.DataFrame(rows)), theirs, 60)
    assert list(table.columns) == ["Llama-3-70B, ours", "Llama-3-70B, SpecMQuant", "Llama-3-8B, ours"]
    assert table.index.tolist() == ["w8a8", "fp16"]
    assert table.iloc[0, 0] == "1.68 (1.60 to 1.76)"
    assert table.iloc[0, 1] == 1.25
    assert table.iloc[1, 1] != table.iloc[1, 1]  # they have no FP16
