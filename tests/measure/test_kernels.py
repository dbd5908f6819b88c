import pandas as pd
import pytest
import torch

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.measure import kernels
from specquant.tables.schemas import TABLES


def test_synthetic_matrices_fill_more_than_is_rotated_and_share_no_memory(monkeypatch):
    monkeypatch.setattr(kernels, "ROTATED_BYTES", 1e5)
    for scheme in kernels.BENCH_SCHEMES:
        matrices = kernels.synthetic_matrices(scheme, 64, 256, "cpu")
        assert sum(matrix.nbytes for matrix in matrices) >= 1e5
        assert sum(matrix.nbytes for matrix in matrices[1:]) < 1e5
        pointers = [buffer.data_ptr() for matrix in matrices for buffer in matrix.buffers()]
        assert len(set(pointers)) == len(pointers)
        x = torch.randn(2, 256)
        assert torch.equal(matrices[0](x), matrices[-1](x))
        assert matrices[0](x).std() > 0.1


def test_an_unknown_model_is_refused():
    with pytest.raises(SpecquantError, match="llama-3-9b"):
        list(kernels.layers(["llama-3-9b"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("bench", [["kernels"], ["kernels", "--row-invariant"], ["attention"]])
def test_without_a_gpu_the_bench_says_so(bench, capsys, tmp_path):
    assert main(["bench", *bench, "--out", str(tmp_path)]) == 2
    assert "measured on an NVIDIA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_rows_say_what_was_measured():
    rows = pd.DataFrame(kernels.measure_kernels(["llama-3-8b"], ["fp16", "w4a8-qqq"], [1, 30], repeats=3))
    assert set(TABLES["kernels"].schema.columns) <= set(rows.columns)
    assert len(rows) == 4 * 2 * 2
    assert (rows.p10_us <= rows.time_us).all()
    assert (rows.time_us <= rows.p90_us).all()
    assert set(zip(rows.scheme, rows.implementation, strict=True)) == {("fp16", "cuBLAS"), ("w4a8-qqq", "specquant")}
    row = rows[(rows.layer == "o_proj") & (rows.scheme == "w4a8-qqq") & (rows.draft_size == 30)].iloc[0]
    assert row.bytes == 4096 * 4096 // 2 + 4096 * 2 + 30 * (4096 + 2 * 4096)
    assert row.operations == 2 * 30 * 4096 * 4096
