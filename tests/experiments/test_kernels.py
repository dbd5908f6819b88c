import json

import pandas as pd
import pytest
import torch

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.experiments import kernels
from specquant.kernels.products import CONFIGURATIONS, Configuration, winners
from specquant.kernels.w4a16_hopper import TABLE, WarpGroups
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


@pytest.mark.parametrize("tile", kernels.CANDIDATES)
def test_candidates_leave_every_program_some_steps(tile):
    for outputs, inputs in (shape for layers in kernels.LAYERS.values() for shape in layers.values()):
        candidates = list(kernels.candidates(outputs, inputs, tile, torch.device("cpu")))
        assert len(candidates) >= 8
        assert len(set(candidates)) == len(candidates)
        assert all(1 <= each.splits <= inputs // 128 // 4 for each in candidates)


@pytest.mark.parametrize("tile", kernels.WARP_GROUP_TILES)
def test_warp_groups_fill_most_of_a_hopper(tile, monkeypatch):
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 132)
    for _, _, (outputs, inputs) in kernels.layers(kernels.LAYERS):
        candidates = list(kernels.warp_group_candidates(outputs, inputs, tile, torch.device("cpu")))
        assert candidates
        for slabs, splits, stages in candidates:
            assert 99 <= -(-outputs // (64 * sum(slabs))) * splits <= 132
            assert stages * splits <= inputs // 128  # every program has as many steps
            assert stages * (sum(slabs) * 4096 + tile * 256) <= kernels.SHARED_BYTES


def test_a_product_runs_as_it_was_chosen_last():
    tables = {"w4a16": {"128x256": {"64": [64, 1, 3, 4, 0]}}}
    groups = WarpGroups((2, 2, 1), 1, 4)
    kernels._choose(tables, "w4a16", "128x256", 64, groups)
    assert tables["w4a16"] == {"128x256": {"64": [64, 1, 3, 4, 0]}}  # for bf16 and row invariance
    assert tables[TABLE] == {"128x256": {"64": [2, 2, 1, 1, 4]}}
    kernels._choose(tables, "w4a16", "128x256", 64, Configuration(128, 1, 3, 4))
    assert tables == {"w4a16": {"128x256": {"64": [128, 1, 3, 4, 0]}}, TABLE: {"128x256": {}}}
    kernels._choose(tables, "w8a8", "128x256", 16, Configuration(64, 2, 3, 4))
    assert tables["w8a8"] == {"128x256": {"16": [64, 2, 3, 4, 0]}}
    assert set(kernels._columns(groups)) - set(kernels._columns(Configuration(64, 2, 3, 4))) == {"slabs"}


def test_tuning_keeps_the_fastest_in_a_layer_and_the_fastest_ordinary_one(monkeypatch, tmp_path):
    """On a stand-in for a Hopper: alone, more outputs are faster; in a layer, what splits least, but for noise."""
    outputs, inputs = 57344, 8192
    table = {}

    class Layers:
        def __init__(self, *arguments):
            pass

        def time_us(self, tile):
            here = table["sm90"]
            groups = here.get(TABLE, {}).get(f"{outputs}x{inputs}", {}).get(str(tile))
            together, splits, *_ = here["w4a16"][f"{outputs}x{inputs}"][str(tile)]
            return 80.0 if groups else 100.0 + splits + together / 1000

    def alone_us(matrices, rows, repeats, chosen=None):
        return torch.tensor([1000.0 - kernels._columns(chosen)["outputs"] if chosen else 1.0])

    for name, stand_in in {
        "require_gpu": lambda device: None,
        "gpu_kind": lambda device: "sm90",
        "multiprocessors": lambda device: 132,
        "winners": lambda: table,
        "LayersAlone": Layers,
        "product_times_us": alone_us,
        "synthetic_matrices": lambda *arguments: [],
        "configuration": lambda *arguments: Configuration(64, 4, 3, 4),
        "layers": lambda models: [(model, "gate_up_proj", (outputs, inputs)) for model in models],
    }.items():
        monkeypatch.setattr(kernels, name, stand_in)
    path = tmp_path / "configurations.json"
    tried = kernels.tune(["llama-3-70b"], ["w4a16-g128"], 60, path, "cpu")
    assert json.loads(path.read_text()) == table
    ordinary, groups = (table["sm90"][product][f"{outputs}x{inputs}"] for product in ("w4a16", TABLE))
    assert {tile: numbers[1] for tile, numbers in ordinary.items()} == {"16": 1, "32": 1, "64": 1}
    # Of those that split least, whose layers take as long, the fastest alone, which has most outputs.
    assert {tile: numbers[0] for tile, numbers in ordinary.items()} == {"16": 128, "32": 256, "64": 256}
    assert groups == {"32": [2, 2, 2, 1, 1, 5], "64": [2, 2, 2, 1, 1, 4]}
    assert set(tried.rows) == {16, 32, 64}
    in_layer = tried.dropna(subset="layer_us")
    assert set(in_layer[in_layer.slabs.notna()].rows.astype(str)) == set(groups)


def test_every_recorded_winner_is_a_configuration_of_a_shape_that_is_measured():
    shapes = {f"{outputs}x{inputs}" for _, _, (outputs, inputs) in kernels.layers(kernels.LAYERS)}
    products = {kernels.kernel_name(scheme) for scheme in kernels.BENCH_SCHEMES if scheme != "fp16"}
    products |= set(kernels.FP8_SCHEMES)
    for kind in winners().values():
        assert {"w4a16", "w8a8"} <= set(kind) <= products | {TABLE}
        for by_tile in kind.get(TABLE, {}).values():
            assert set(by_tile) <= {"32", "64"}
            assert all(tuple(slabs) in kernels.WARP_GROUPS for *slabs, _, _ in by_tile.values())
        assert set(kind.get(TABLE, {})) <= shapes
        for by_shape in (by_shape for product, by_shape in kind.items() if product != TABLE):
            assert set(by_shape) == shapes
            for by_tile in by_shape.values():
                assert set(by_tile) == {"16", "32", "64"}
                assert all(Configuration(*numbers).warps in (4, 8) for numbers in by_tile.values())


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


@pytest.mark.gpu
def test_a_layer_takes_longer_than_its_largest_product():
    layer_us = kernels.LayersAlone("llama-3-8b", "w4a8-qqq", torch.device("cuda")).time_us(16, repeats=3)
    matrices = kernels.synthetic_matrices("w4a8-qqq", 28672, 4096, "cuda")
    assert layer_us > kernels.product_times_us(matrices, 16, 3).median()


@pytest.mark.gpu
def test_tuning_stops_in_time_and_keeps_what_it_did_not_reach(tmp_path):
    path = tmp_path / "configurations.json"
    path.write_text(CONFIGURATIONS.read_text())
    assert kernels.tune(["llama-3-8b"], ["fp16", "w8a8"], 0, path).empty
    assert json.loads(path.read_text()) == json.loads(CONFIGURATIONS.read_text())
