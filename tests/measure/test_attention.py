import pytest
import torch

from specquant.errors import SpecquantError
from specquant.measure.attention import attention_cost, neighbour_cost


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("measure", [attention_cost, neighbour_cost])
def test_without_a_gpu_nothing_is_measured(measure):
    with pytest.raises(SpecquantError, match="measured on an NVIDIA GPU"):
        measure()


@pytest.mark.gpu
def test_every_case_is_a_row():
    frame = attention_cost(draft_sizes=(1, 3), context_lengths=(64,), repeats=2)
    assert (
        frame.groupby("draft_size")["implementation"].agg(list).tolist()
        == [["triton", "triton, row-invariant", "torch"]] * 2
    )
    frame = neighbour_cost(draft_sizes=(64,), repeats=2)
    assert {"add and norm", "swiglu and quantize", "rerank"} <= set(frame["operation"])
    assert (frame[["time_us", "p10_us", "p90_us"]] > 0).all().all()
