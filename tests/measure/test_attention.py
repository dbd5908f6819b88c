"""Attention and its neighbours: which cases are timed, on shapes that a CPU can make."""

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.measure import attention
from specquant.measure.attention import MEASURE, Parameters
from specquant.measure.measure import record
from specquant.tables.results import read_results

FEW = {"processes": 1, "repeats": 2, "warm_up_ms": 0.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path):
    with pytest.raises(SpecquantError, match="measured on an NVIDIA GPU"):
        record(MEASURE, Parameters(), tmp_path)


def test_every_case_is_timed_in_blocks(tmp_path, monkeypatch, in_process):
    sizes = {"LAYERS": 2, "HIDDEN": 64, "INNER": 128, "HEADS": 4, "KV_HEADS": 2, "HEAD_DIM": 16, "VOCABULARY": 300}
    for name, size in (sizes | {"ROTATED_BYTES": 1e4, "DRAFT_SIZE_WITH_DRAFTING": 3}).items():
        monkeypatch.setattr(attention, name, size)
    parameters = Parameters((1, 3), (8, 16), blocks=2, device="cpu", **(FEW | {"processes": 2}))
    rows = read_results(record(MEASURE, parameters, tmp_path))
    of_attention = rows[rows.operation == "attention"]
    assert len(of_attention) == 2 * 2 * 2 * 2  # processes, contexts, draft sizes, blocks
    assert set(of_attention.context_length) == {8, 16}
    assert set(rows.implementation) == {"reference"}  # on a CPU no kernel runs
    others = rows[rows.context_length == 0]
    assert (others.groupby(["operation", "process"]).draft_size.nunique() <= 2).all()
    assert set(others[others.operation == "rerank"].draft_size) == {3}
    assert (rows.time_us > 0).all()
    assert (rows.groupby(["process", "context_length"]).place.max() > 0).all()


@pytest.mark.gpu
def test_every_case_is_a_row(tmp_path):
    frame = read_results(record(MEASURE, Parameters((1, 3, 64), (64,), **FEW), tmp_path))
    of_attention = frame[frame["operation"] == "attention"]
    for _, of_size in of_attention.groupby("draft_size"):
        assert set(of_size["implementation"]) == {"triton", "triton, row-invariant", "torch"}
        assert len(of_size) == 3
    assert {"add and norm", "swiglu and quantize", "rerank"} <= set(frame["operation"])
    assert (frame[["time_us", "p10_us", "p90_us"]] > 0).all().all()
