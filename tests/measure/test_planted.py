"""Planted drafts on small shapes: what is found is what was planted, and a target that is not lossless is found out."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from scipy.stats import binom

from specquant.decoding import Speculator
from specquant.decoding.method import Plan
from specquant.errors import SpecquantError
from specquant.measure import planted
from specquant.measure.measure import record
from specquant.models.llama import Llama, set_compute_dtype
from specquant.models.loading import load_model
from specquant.models.synthetic import code_shares
from specquant.study import read_results, write_results
from specquant.tables.intervals import rule_of_three
from tests.decoding.conftest import random_head, random_model

PLANS = (
    Plan("autoregressive"),
    Plan("vanilla", min_draft_length=3),
    Plan("eagle2", 7, 3),
    Plan("hierarchical", 7, 3, 4),
)
# A row as `decode_plans` gives it, where only what it was asked for counts.
ROW = pd.DataFrame(
    [
        {"method": "sequence", "draft_size": 0, "iterations": 0, "min_draft_length": 9, "acceptance": "planted"}
        | dict.fromkeys(
            ("error_rate", "inner_error_rate", "inner_rounds", "draft_ms", "other_ms", "median_margin"), 0.1
        )
        | dict.fromkeys(("judged_tokens", "inner_judged_tokens", "differing_texts"), 0)
        | dict.fromkeys(("context_length", "new_tokens", "steps", "texts", "compared_tokens", "distinct_tokens"), 1)
        | dict.fromkeys(("mean_draft_size", "accepted_length", "prefill_ms", "verify_ms", "decode_ms"), 1.0)
        | {"tokens_per_s": 1.0, "first_differences": "none", "margins": "none"}
        | dict.fromkeys(("accepted_share", "inner_accepted_share", "inner_accepted_length", "clock_mhz", "power_w"))
    ]
)
METHODS = {"autoregressive", "vanilla", "eagle2", "hierarchical", "sequence"}


@pytest.fixture
def settings(small_models, tmp_path, monkeypatch, in_process):
    """Parameters of small models with trees recorded for them."""
    monkeypatch.setattr(planted, "PAPER_PLANS", PLANS)
    trees = pd.DataFrame({"model": ["small target", "small intermediate"], "draft_size": 7, "iterations": 3})
    trees = trees.assign(parents=["-1 0 0 1 1 3 2", "-1 0 1 2 0 0 0"], weights="trained", scheme="fp16")
    write_results(trees.assign(accepted_length=2.0), tmp_path / "trees.csv", {})

    def make(*schemes, model=small_models / "target", intermediate=small_models / "intermediate", **options):
        options = {"tokens": 24, "new_tokens": 12, "prompt_length": 5, "processes": 1, "weights": "synthetic"} | options
        options = {"trees": str(tmp_path / "trees.csv"), "device": "cpu", "dtype": "float64"} | options
        intermediate = intermediate and str(intermediate)
        return planted.Parameters(str(model), intermediate, schemes or ("w4a16-g128",), **options)

    make.ordered = in_process
    return make


def measure(parameters, tmp_path):
    return read_results(record(planted.MEASURE, parameters, tmp_path / "out"))


def test_every_method_writes_what_decoding_one_by_one_does(settings, tmp_path):
    rows = measure(settings("fp16", "w4a16-g128", error_rate=0.3), tmp_path)
    for _, of_unit in rows.groupby(["scheme", "row_invariant"]):
        assert set(of_unit.method) == METHODS
    assert len(rows) == 2 * 2 * len(METHODS)
    assert (rows.differing_texts == 0).all()
    assert set(rows.first_differences) == set(rows.margins) == {"none"}
    assert set(rows.acceptance) == {"planted"}
    assert set(rows.weights) == {"synthetic"}
    drafted = rows[rows.method != "autoregressive"]
    assert (drafted.texts == 2).all()
    assert (drafted.compared_tokens >= 24).all()
    assert (drafted.accepted_length > 1).all()
    assert (rows.distinct_tokens > 3).all()
    assert (rows.tokens_per_s > 0).all()
    one_by_one = rows[rows.method == "autoregressive"]
    assert (one_by_one.accepted_length == 1).all()
    assert (one_by_one.texts == 1).all()  # compared with itself
    assert one_by_one.accepted_share.isna().all()
    told = planted.losslessness(rows)
    assert (told.at_most * told.compared_tokens).tolist() == pytest.approx([3] * len(told))


def test_what_is_found_is_what_was_planted(settings, tmp_path):
    rows = measure(settings("fp16", error_rate=0.3, inner_error_rate=0.1, tokens=120), tmp_path)
    for row in rows[rows.method != "autoregressive"].itertuples():
        low, high = binom.interval(0.999, row.judged_tokens, 0.7)
        assert low <= row.accepted_share * row.judged_tokens <= high, row.method
    inner = rows[rows.method == "hierarchical"]
    low, high = binom.interval(0.999, inner.inner_judged_tokens, 0.9)
    assert ((low <= inner.inner_accepted_share * inner.inner_judged_tokens) & (inner.inner_judged_tokens > 60)).all()
    assert (rows[rows.method != "hierarchical"].inner_error_rate == 0).all()


@pytest.mark.parametrize(("rate", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_without_errors_all_is_accepted_and_with_errors_alone_nothing(settings, tmp_path, rate, share):
    rows = measure(settings("fp16", error_rate=rate, inner_error_rate=rate, tokens=12), tmp_path)
    drafted = rows[rows.method != "autoregressive"]
    assert (drafted.accepted_share == share).all()
    assert ((drafted.accepted_length > 1) == (share == 1)).all()


class RowsDecide(Llama):
    """A target whose likeliest token is another one where it is close, in every pass of more than one row."""

    moved = 0.0

    def logits(self, features):
        logits = super().logits(features)
        if len(logits) > 1:
            logits[range(len(logits)), logits.argmax(dim=1)] -= self.moved
        return logits


def models_of(moved):
    model = random_model(vocab_size=61)
    target = set_compute_dtype(RowsDecide(model.config, context_length=96), model.dtype)
    target.load_state_dict(model.state_dict())
    target.moved = moved
    small = random_model(vocab_size=61, seed=5)
    about = {"head": random_head(model), "inner_head": random_head(small), "context_length": 96, "device": "cpu"}
    return SimpleNamespace(target=target, intermediate=small, share_cache=False, **about)


def test_a_target_whose_tokens_depend_on_the_rows_of_a_pass_is_found_out(settings, monkeypatch):
    parameters, models = settings(new_tokens=40, tokens=120), models_of(moved=0.05)
    monkeypatch.setattr(planted.Parameters, "prompts", lambda *_: [[first, 2, 3] for first in range(6)])
    rows = planted.decode_plans(models, parameters, 0).set_index("method")
    known = [
        planted.decode_one_by_one(Speculator(models.target), prompt, 40 + parameters.reach)
        for prompt in parameters.prompts(0)
    ]
    close = [[at for at, margin in enumerate(text.margins) if at and margin < 0.05][:1] for text in known]
    expected = [(at, known[text].margins[at]) for text, found in enumerate(close) for at in found if at < 40]
    assert len(expected) >= 2
    row = rows.loc["sequence"]  # every pass of it has several rows
    assert row.first_differences == " ".join(str(at) for at, _ in expected)
    assert [float(margin) for margin in row.margins.split()] == pytest.approx([m for _, m in expected], rel=1e-3)
    assert row.differing_texts == len(expected)
    assert row.compared_tokens < 6 * 40
    assert (rows.differing_texts.drop("autoregressive") > 0).all()
    assert rows.loc["autoregressive"].differing_texts == 0
    lengths = {at for at, _ in expected}
    assert row.compared_tokens >= sum(lengths)  # up to and with the difference, and no further

    same = planted.decode_plans(models_of(moved=0.0), parameters, 0)
    assert (same.differing_texts == 0).all()


def test_the_margin_and_the_bound_are_told_of_all_processes():
    about = {"model": "m", "scheme": "s", "weights": "synthetic", "codes": "uniform", "row_invariant": "no"}
    plan = {"method": "eagle2", "draft_size": 7, "iterations": 3, "min_draft_length": 0}
    found = [("5 9", "0.01 0.5", 2), ("none", "none", 0)]
    rows = pd.DataFrame(
        about | plan | {"row_invariant": said, "texts": 3, "compared_tokens": 100, "margins": margins}
        | {"differing_texts": count, "first_differences": places}
        | {"process": process, "tokens": 768}
        for said, several in (("no", found), ("yes", found[1:] * 2))
        for process, (places, margins, count) in enumerate(several)
    )  # fmt: skip
    differs, same = planted.losslessness(rows).itertuples()
    assert (differs.texts, differs.compared_tokens, differs.differing_texts, differs.largest_margin) == (6, 200, 2, 0.5)
    assert pd.isna(differs.at_most)
    assert (same.differing_texts, same.at_most) == (0, 3 / 200)
    assert pd.isna(same.largest_margin)


def test_a_shorter_run_has_the_first_prompts_of_a_longer_one_and_its_texts_do_not_count_again(settings):
    longer, shorter = (settings("fp16", tokens=tokens, new_tokens=12) for tokens in (48, 12))
    assert longer.prompts(0)[:1] == shorter.prompts(0)
    rows = read_results("data/recorded/h200/planted.csv").query("codes == 'uniform' and row_invariant == 'no'")
    of_tree = rows.query("model == 'llama-3-70b' and method == 'eagle2' and draft_size == 24")
    assert of_tree.tokens.tolist() == [2048, 256]
    (told,) = planted.losslessness(of_tree.iloc[::-1]).itertuples()
    assert (told.texts, told.compared_tokens) == (8, of_tree.compared_tokens.iloc[0])


def test_the_rule_of_three_is_the_end_of_the_95_percent_interval():
    assert rule_of_three(20_000) == pytest.approx(1.5e-4)
    assert binom.pmf(0, 20_000, rule_of_three(20_000)) == pytest.approx(0.05, abs=0.001)
    assert rule_of_three(2) == 1
    with pytest.raises(SpecquantError, match="0 trials say nothing"):
        rule_of_three(0)


def test_what_is_there_is_not_measured_again(settings, tmp_path):
    options = {"methods": ("eagle2",), "tokens": 12}
    first = measure(settings("fp16", **options), tmp_path)
    settings.ordered.clear()
    rows = measure(settings("fp16", processes=2, **options), tmp_path)
    assert [(unit["row_invariant"], unit["process"]) for unit in settings.ordered] == [("no", 1), ("yes", 1)]
    pd.testing.assert_frame_equal(rows[rows.process == 0].reset_index(drop=True), first)
    with pytest.raises(SpecquantError, match=r"holds rows measured with error_rate 0\.15, not 0\.2"):
        measure(settings("fp16", error_rate=0.2, **options), tmp_path)


def test_one_setting_of_row_invariance_can_be_asked_for(settings, tmp_path):
    rows = measure(settings("fp16", methods=("eagle2",), tokens=12, row_invariance=("yes",)), tmp_path)
    assert set(rows.row_invariant) == {"yes"}


def test_a_row_that_is_there_twice_is_refused(settings, tmp_path):
    path = record(planted.MEASURE, settings("fp16", methods=("sequence",), tokens=12), tmp_path / "out")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[2]]) + "\n")
    with pytest.raises(SpecquantError, match=rf"line {len(lines) + 1}: a second row of model "):
        read_results(path)


def test_without_an_intermediate_model_trees_and_sequences_are_planted(settings, tmp_path):
    rows = measure(settings("fp16", intermediate=None, tokens=12), tmp_path)
    assert set(rows.method) == {"autoregressive", "eagle2", "sequence"}
    assert set(rows.intermediate) == {"none"}


def test_a_directory_has_its_own_weights_by_default(settings, small_models, tmp_path):
    rows = measure(settings("fp16", weights=None, methods=("sequence",), tokens=12), tmp_path)
    assert set(rows.weights) == set(rows.codes) == {"trained"}
    assert (rows.differing_texts == 0).all()


def test_codes_are_drawn_as_those_of_a_trained_model(settings, small_models, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(planted, "decode_plans", lambda models, *_: drawn.append(code_shares(models.target)) or ROW)
    options = {"codes_from": str(small_models / "target"), "keep_targets_in": str(tmp_path / "targets")}
    text = tmp_path / "text.txt"
    text.write_text("1 plus 1 makes 2, and 2 plus 2 makes 4. " * 200)
    for codes in ("trained", "uniform"):
        rows = measure(settings("w4a16-g128", codes=codes, calibration_text=text, **options), tmp_path)
    assert set(rows.codes) == {"trained", "uniform"}  # one table holds both
    copy = next((tmp_path / "targets").iterdir())
    wanted = code_shares(load_model(copy))
    trained, _, uniform, _ = [float((shares - wanted).abs().sum()) for shares in drawn]
    assert trained < 0.05 < 0.2 < uniform


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"error_rate": 1.5}, "the error rate is 1.5: give a probability, from 0 to 1"),
        ({"inner_error_rate": -1.0}, "the error rate is -1.0"),
        ({"tokens": 0}, "tokens is 0: give at least 1"),
        ({"tokens": 10**12}, "tokens is 1000000000000: give at most 10000000"),
        ({"processes": 0}, "processes is 0: give at least 1"),
        ({"seed": -1}, "seed is -1: give at least 0"),
        ({"methods": ("magic",)}, "'magic' cannot be measured: choose of autoregressive, vanilla, eagle2"),
        ({"intermediate": None, "methods": ("vanilla",)}, "'vanilla' cannot be measured: it needs an intermediate"),
        ({"model": "llama-3-8b", "weights": "trained"}, "llama-3-8b is a name, without weights"),
        (
            {"model": "nothing", "weights": "synthetic"},
            "nothing is neither a model directory nor one of llama-3-8b, llama-3-70b",
        ),
        ({"row_invariance": ("maybe",)}, "row_invariance is"),
        ({"codes": "odd"}, "codes is 'odd': give uniform or trained"),
        ({"codes": "trained"}, "fp16 has no integer codes"),
        ({"head_scheme": "nonsense"}, "unknown scheme 'nonsense'"),
        ({"trees": "nowhere/trees.csv"}, "there are no results at"),
        ({"head_vocabulary": 10**6}, "a vocabulary of [0-9]+ has no 1000000 most frequent tokens"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(settings, options, sentence):
    with pytest.raises(SpecquantError, match=sentence):
        settings("fp16", **options).check()


def test_a_name_may_come_as_a_path():
    parameters = planted.Parameters(Path("llama-3-8b"), device="cpu")
    assert (parameters.weights, parameters.source) == ("synthetic", "llama-3-8b")
