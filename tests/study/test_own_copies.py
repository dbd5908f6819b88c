"""What a copy in fewer bits gains: speedups of the same process, and drafts shorter than those that were recorded."""

import shutil

import pytest

from specquant.files import resolve
from specquant.planning.traces import Traces
from specquant.study import own_copies, read_results
from tests.study.conftest import numbers_of

RECORDED = resolve(own_copies.RECORDED)
TARGETS = [("llama-3-70b", "w8a8"), ("llama-3-8b", "fp16"), ("llama-3-8b", "w8a8")]


@pytest.fixture
def recorded(tmp_path):
    for name in (*own_copies.REPLAYED.values(), *own_copies.SMOLLM2.values(), "traced"):
        shutil.copytree(RECORDED / name, tmp_path / name)
    return tmp_path


def test_a_speedup_is_over_one_by_one_in_the_same_process(recorded):
    table = recorded / "traced-self/replayed.csv"
    rows = read_results(table)
    chosen = (rows.model == "llama-3-8b") & (rows.scheme == "fp16")
    for method, process, tokens_per_s in (("autoregressive", 0, 100.0), ("autoregressive", 1, 200.0)):
        rows.loc[chosen & (rows.method == method) & (rows.process == process), "tokens_per_s"] = tokens_per_s
    rows.loc[chosen & (rows.method == "vanilla"), "tokens_per_s"] = 150.0
    rows.to_csv(table, index=False)
    told = own_copies.speedups(recorded)
    row = told.loc["llama-3-8b", "fp16", "vanilla"]
    assert row.tolist() == pytest.approx([1.125, 0.75, 1.5, 2])
    assert sorted(told.index.droplevel("method").unique()) == TARGETS
    assert set(told.loc["llama-3-8b", "w8a8"].index) == {*own_copies.COLUMNS}
    assert "eagle2" not in told.loc["llama-3-70b", "w8a8"].index  # of which it was not replayed


def test_of_a_shorter_draft_counts_what_was_accepted_of_its_beginning():
    told = own_copies.shorter_drafts()
    accepted = Traces(read_results(RECORDED / own_copies.SMOLLM2[""] / "traces.csv"), "fp16").sequences(
        own_copies.VANILLA
    )
    rows = read_results(RECORDED / "traced-self/replayed.csv").query("model == 'llama-3-8b' and scheme == 'fp16'")
    medians = rows.groupby("method")[["draft_ms", "verify_ms", "other_ms", "tokens_per_s"]].median()
    whole = medians.loc["vanilla"]
    step_ms = whole.draft_ms / 6 + whole.verify_ms + whole.other_ms
    tokens = 1 + sum(kept != 0 for kept in accepted) / len(accepted)
    expected = 1e3 * tokens / step_ms / medians.tokens_per_s["autoregressive"]
    assert told.loc[("llama-3-8b", "fp16", ""), 1] == pytest.approx(expected)


def test_whole_drafts_are_predicted_as_fast_as_they_were():
    told, measured = own_copies.shorter_drafts(), own_copies.speedups()["median"]
    for model, scheme, shared in told.index:
        predicted = told.loc[model, scheme, shared][6]
        assert predicted == pytest.approx(measured[model, scheme, f"vanilla{shared}"], rel=0.05)
        assert told.loc[model, scheme, shared][own_copies.ALL_ACCEPTED] > predicted


def test_a_copy_takes_about_half_of_its_target_s_time_for_a_token_and_more():
    rows = read_results(RECORDED / "traced-self/replayed.csv").query("model == 'llama-3-70b'").set_index("method")
    expected = rows.draft_ms["vanilla"] / 6 / rows.verify_ms["autoregressive"]
    shares = own_copies.share_of_target()
    assert shares["llama-3-70b", "w8a8", ""] == pytest.approx(expected)
    known = numbers_of(own_copies)
    assert 45 < known["own copy over its target, least %"] == 100 * shares.min()
    assert 100 > known["own copy over its target, most %"] == 100 * shares.max()


def test_each_target_has_its_row_and_every_number_its_name():
    cells = own_copies.cells()
    assert list(cells) == ["70B w8a8", "8B fp16", "8B w8a8"]
    assert list(cells["8B fp16"])[-2:] == [own_copies.PREDICTED, own_copies.COLUMNS["eagle2"]]
    known = numbers_of(own_copies)
    for name in (
        "own copy 8B fp16, vanilla, shared cache, best",
        "own copy accepts w8a8, vanilla, agrees %",
        "own copy 70B w8a8, hierarchical",
    ):
        assert known[name] > 0
    assert known["own copy accepts fp16, vanilla, low"] < known["own copy accepts fp16, vanilla"]
