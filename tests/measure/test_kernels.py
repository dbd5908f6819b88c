import json

import pytest
import torch

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.measure import kernels
from specquant.measure.kernels import MEASURE, Parameters
from specquant.measure.measure import record
from specquant.measure.parameters import require_gpu
from specquant.tables.results import read_medians, read_results
from specquant.tables.schemas import TABLES

FEW = {"repeats": 2, "warm_up_ms": 0.0, "device": "cpu"}


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


@pytest.mark.parametrize(
    ("device", "says"),
    [("nonsense", "there is no device 'nonsense' here"), ("mps", "no device 'mps'"), ("cpu", "and cpu here is none")],
)
def test_beside_a_gpu_another_device_is_refused_by_a_sentence(device, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SpecquantError, match=says):
        require_gpu(device)


@pytest.fixture
def small_layers(monkeypatch, in_process):
    monkeypatch.setattr(kernels, "ROTATED_BYTES", 2e5)
    monkeypatch.setattr(kernels, "LAYERS", {"small": {"qkv_proj": (128, 256), "o_proj": (256, 128)}})
    return in_process


def test_each_product_is_timed_in_blocks_in_every_process(small_layers, tmp_path):
    parameters = Parameters(("small",), ("fp16", "w4a16-g128"), (1, 3), blocks=2, processes=2, **FEW)
    path = record(MEASURE, parameters, tmp_path)
    rows = read_results(path)
    assert len(rows) == 2 * 2 * 2 * 2 * 2  # processes, layers, schemes, draft sizes, blocks
    assert set(rows.implementation) == {"reference"}
    assert (rows.p10_us <= rows.time_us).all()
    assert (rows.time_us <= rows.p90_us).all()
    assert (rows.groupby(["process", "layer", "scheme"]).place.nunique() == 4).all()
    orders = [tuple(of.sort_values("place").draft_size) for _, of in rows.groupby(["process", "layer", "scheme"])]
    assert len(set(orders)) > 1
    told = read_medians(path)
    assert len(told) == 2 * 2 * 2
    assert not {"process", "block"} & set(told)
    small_layers.clear()
    record(MEASURE, parameters, tmp_path)
    assert small_layers == []  # nothing is measured twice


def test_on_a_cpu_that_is_asked_for_products_are_measured_and_no_ceilings(small_layers, tmp_path):
    parameters = Parameters(("small",), ("fp16",), (1,), processes=1, **FEW)
    assert kernels.record_kernels(parameters, tmp_path) == [tmp_path / "kernels.csv"]
    assert len(read_results(tmp_path / "kernels.csv")) == 2
    assert not (tmp_path / "ceilings.csv").exists()


@pytest.mark.parametrize("bench", ["ceilings", "profile"])
def test_what_no_cpu_can_do_is_not_offered_for_one(bench, capsys):
    assert main(["bench", bench, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--device TEXT cuda; only a GPU is measured. (default: cuda)" in told
    assert "references run" not in told


def test_a_table_of_before_blocks_is_read_as_it_is_and_not_gone_on_with(small_layers, tmp_path):
    parameters = Parameters(("small",), ("fp16",), (1, 3), processes=1, **FEW)
    path = record(MEASURE, parameters, tmp_path)
    told = json.loads(path.with_suffix(".json").read_text())
    del told["parameters"]["blocks"]
    path.with_suffix(".json").write_text(json.dumps(told))
    rows = read_results(path).drop(columns=["process", "block", "place"])
    rows.to_csv(path, index=False)
    assert read_medians(path).equals(rows)
    with pytest.raises(SpecquantError, match=r"kernels\.csv holds rows measured with blocks None, not 1"):
        record(MEASURE, parameters, tmp_path)


def test_the_figure_cuts_off_no_marker():
    rows = read_medians("data/recorded/h200/kernels.csv")
    for axis, (_, of_panel) in zip(kernels.draw(rows).axes, rows.groupby(["model", "layer"], sort=False), strict=True):
        assert 1.1 * of_panel.time_us.max() > axis.get_ylim()[1] > 1.05 * of_panel.time_us.max()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"models": ("llama-3-9b",)}, "unknown model 'llama-3-9b'"),
        ({"schemes": ("w3",)}, "unknown scheme 'w3'"),
        ({"draft_sizes": (1, -1)}, r"draft_sizes is \(1, -1\): give whole numbers of at least 1"),
        ({"repeats": 0}, "repeats is 0: give at least 1"),
    ],
)
def test_what_cannot_be_is_refused(options, sentence, tmp_path):
    with pytest.raises(SpecquantError, match=sentence):
        record(MEASURE, Parameters(**({"device": "cpu"} | options)), tmp_path)


@pytest.mark.gpu
def test_rows_say_what_was_measured(tmp_path):
    parameters = Parameters(("llama-3-8b",), ("fp16", "w4a8-qqq"), (1, 30), processes=1, repeats=3)
    rows = read_results(record(MEASURE, parameters, tmp_path))
    assert set(TABLES["kernels"].schema.columns) <= set(rows.columns)
    assert len(rows) == 4 * 2 * 2
    assert (rows.p10_us <= rows.time_us).all()
    assert (rows.time_us <= rows.p90_us).all()
    assert set(zip(rows.scheme, rows.implementation, strict=True)) == {("fp16", "cuBLAS"), ("w4a8-qqq", "specquant")}
    row = rows[(rows.layer == "o_proj") & (rows.scheme == "w4a8-qqq") & (rows.draft_size == 30)].iloc[0]
    assert row.bytes == 4096 * 4096 // 2 + 4096 * 2 + 30 * (4096 + 2 * 4096)
    assert row.operations == 2 * 30 * 4096 * 4096


def test_a_table_that_was_recorded_without_rests_is_not_gone_on_with(small_layers, tmp_path):
    def measured(*schemes):
        return record(MEASURE, Parameters(("small",), schemes, (1,), processes=1, **FEW), tmp_path)

    told = measured("fp16").with_suffix(".json")
    before = json.loads(told.read_text())
    assert before["parameters"].pop("rest_over_run") > 0
    told.write_text(json.dumps(before))
    with pytest.raises(SpecquantError, match=r"holds rows measured with rest_over_run 0\.0, not 2\.0"):
        measured("w8a8")
