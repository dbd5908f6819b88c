"""Drafts, rounds and what comes behind wide passes, on shapes that a CPU can make."""

import pytest

from specquant.errors import SpecquantError
from specquant.measure import drafting, rounds, settling
from specquant.measure.measure import record
from specquant.models import names
from specquant.tables.results import read_provenance, read_results
from tests.family import SMALL_SHAPE

SMALL = names.LLAMA_3 | SMALL_SHAPE | {"vocab_size": 320}
HEADS = ((None, None), ("w4a16-g128", 64))


@pytest.fixture
def small_shapes(monkeypatch, in_process):
    for name in ("llama-3-8b", "llama-3-70b"):
        monkeypatch.setitem(names.SHAPES, name, SMALL)
    for module in (drafting, rounds):
        monkeypatch.setattr(module, "HEADS", HEADS)
    monkeypatch.setattr(drafting, "TREES", ((24, 3), (30, 3)))


def test_drafts_are_timed_in_blocks(small_shapes, tmp_path):
    parameters = drafting.Parameters(processes=2, repeats=3, context_length=40, warm_up_ms=0.0, device="cpu")
    path = record(drafting.MEASURE, parameters, tmp_path)
    drafts = read_results(path)
    assert len(drafts) == 2 * 2 * len(HEADS) * 2  # models, processes, heads, trees
    one = drafts[(drafts.model == "llama-3-8b") & (drafts.process == 0) & (drafts.draft_size == 24)]
    assert one[["head_scheme", "head_vocabulary"]].values.tolist() == [["fp16", 320], ["w4a16-g128", 64]]
    assert (drafts.time_ms > 0).all()
    assert (drafts.p10_ms <= drafts.p90_ms).all()
    # fc and its bias, the layer and the LM head, read once in each of three iterations; 4 bits and a scale each group.
    matrices = 128 * 256 + 128 * 256 + 128 * 128 + 512 * 128 + 128 * 256
    of = one.set_index("head_scheme").bytes
    assert of["fp16"] == 3 * (4 * (128 * 256 + 128) + 2 * (matrices - 128 * 256) + 4 * 320 * 128)
    assert of["w4a16-g128"] == 3 * ((matrices + 64 * 128) * (4 + 16 / 128) / 8 + 2 * 128)
    assert read_provenance(path)["parameters"]["confirmed_rows"] == 4


def test_rounds_are_timed_with_each_head(small_shapes, tmp_path):
    parameters = rounds.Parameters(processes=2, repeats=3, context_length=40, device="cpu")
    told = read_results(record(rounds.MEASURE, parameters, tmp_path))
    assert told.head_scheme.tolist() == ["fp16", "w4a16-g128"] * 2
    assert (told.accepted_length > 1).all()
    assert (told[["draft_ms", "verify_ms", "other_ms"]] > 0).all(axis=None)


def test_passes_and_drafts_behind_wide_ones(small_shapes, tmp_path, monkeypatch):
    for name, count in {"LEAD": 2, "SUCCESSIVE": 6, "STEPS": 6}.items():
        monkeypatch.setattr(settling, name, count)
    parameters = settling.Parameters(
        ("llama-3-8b",), behind=(1, 8), idle_ms=(0.0, 1.0), trees=(1, 24), context_length=40, processes=2, device="cpu"
    )
    rows = read_results(record(settling.MEASURE, parameters, tmp_path))
    passes = rows[(rows.what == "pass") & (rows.process == 0)]
    assert passes.groupby(["behind", "idle_ms"]).size().tolist() == [6] * 4
    steps = rows[(rows.what != "pass") & (rows.process == 0)].groupby(["what", "behind"]).size()
    assert steps.to_dict() == dict.fromkeys(
        [("draft", 0), ("draft", 1), ("draft", 24), ("verify", 1), ("verify", 24)], 6
    )
    assert (settling.steady(rows).processes == 2).all()
    first = settling.first_passes(rows)
    assert first.index.names == ["model", "scheme", "behind", "idle_ms", "position"]
    assert (first["median"] > 0).all()


@pytest.mark.parametrize("module", [drafting, settling])
def test_unknown_models_are_refused(module, tmp_path):
    with pytest.raises(SpecquantError, match="choose of llama-3-8b"):
        record(module.MEASURE, module.Parameters(("llama-9",), device="cpu"), tmp_path)


def test_more_new_tokens_than_the_context_are_refused(tmp_path):
    with pytest.raises(SpecquantError, match="do not fit a context"):
        record(drafting.MEASURE, drafting.Parameters(confirmed_rows=512, device="cpu"), tmp_path)
