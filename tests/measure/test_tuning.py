"""Which configurations are tried, and which are kept."""

import json

import pytest
import torch

from specquant.kernels.products import CONFIGURATIONS, Configuration, winners
from specquant.kernels.w4a16_hopper import TABLE, WarpGroups
from specquant.measure import kernels, tuning
from specquant.quant import PackedLinear


@pytest.mark.parametrize("tile", tuning.CANDIDATES)
def test_candidates_leave_every_program_some_steps(tile):
    for outputs, inputs in (shape for layers in kernels.LAYERS.values() for shape in layers.values()):
        candidates = list(tuning.candidates(outputs, inputs, tile, torch.device("cpu")))
        assert len(candidates) >= 8
        assert len(set(candidates)) == len(candidates)
        assert all(1 <= each.splits <= inputs // 128 // 4 for each in candidates)


@pytest.mark.parametrize("tile", tuning.WARP_GROUP_TILES)
def test_warp_groups_fill_most_of_a_hopper(tile, monkeypatch):
    monkeypatch.setattr(tuning, "multiprocessors", lambda device: 132)
    for _, _, (outputs, inputs) in kernels.layers(kernels.LAYERS):
        candidates = list(tuning.warp_group_candidates(outputs, inputs, tile, torch.device("cpu")))
        assert candidates
        for slabs, splits, stages in candidates:
            assert 99 <= -(-outputs // (64 * sum(slabs))) * splits <= 132
            assert stages * splits <= inputs // 128  # every program has as many steps
            assert stages * (sum(slabs) * 4096 + tile * 256) <= tuning.SHARED_BYTES


def test_a_product_runs_as_it_was_chosen_last():
    tables = {"w4a16": {"128x256": {"64": [64, 1, 3, 4, 0]}}}
    groups = WarpGroups((2, 2, 1), 1, 4)
    tuning._choose(tables, "w4a16", "128x256", 64, groups)
    assert tables["w4a16"] == {"128x256": {"64": [64, 1, 3, 4, 0]}}  # for bf16 and row invariance
    assert tables[TABLE] == {"128x256": {"64": [2, 2, 1, 1, 4]}}
    tuning._choose(tables, "w4a16", "128x256", 64, Configuration(128, 1, 3, 4))
    assert tables == {"w4a16": {"128x256": {"64": [128, 1, 3, 4, 0]}}, TABLE: {"128x256": {}}}
    tuning._choose(tables, "w8a8", "128x256", 16, Configuration(64, 2, 3, 4))
    assert tables["w8a8"] == {"128x256": {"16": [64, 2, 3, 4, 0]}}
    assert set(tuning._columns(groups)) - set(tuning._columns(Configuration(64, 2, 3, 4))) == {"slabs"}


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
        return torch.tensor([1000.0 - tuning._columns(chosen)["outputs"] if chosen else 1.0])

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
        monkeypatch.setattr(tuning, name, stand_in)
    path = tmp_path / "configurations.json"
    tried = tuning.tune(["llama-3-70b"], ["w4a16-g128"], 60, path, "cpu")
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
            assert all(tuple(slabs) in tuning.WARP_GROUPS for *slabs, _, _ in by_tile.values())
        assert set(kind.get(TABLE, {})) <= shapes
        for by_shape in (by_shape for product, by_shape in kind.items() if product != TABLE):
            assert set(by_shape) == shapes
            for by_tile in by_shape.values():
                assert set(by_tile) == {"16", "32", "64"}
                assert all(Configuration(*numbers).warps in (4, 8) for numbers in by_tile.values())


@pytest.mark.gpu
def test_a_layer_alone_runs_every_product_of_it():
    alone = tuning.LayersAlone("llama-3-8b", "w4a8-qqq", torch.device("cuda"))
    assert alone.time_us(16, repeats=1) > 0
    in_order = [(m.out_features, m.in_features) for m in alone.model.modules() if isinstance(m, PackedLinear)]
    layers = alone.model.config.num_hidden_layers
    assert in_order == [*kernels.LAYERS["llama-3-8b"].values()] * layers


@pytest.mark.gpu
def test_tuning_stops_in_time_and_keeps_what_it_did_not_reach(tmp_path):
    path = tmp_path / "configurations.json"
    path.write_text(CONFIGURATIONS.read_text())
    assert tuning.tune(["llama-3-8b"], ["fp16", "w8a8"], 0, path).empty
    assert json.loads(path.read_text()) == json.loads(CONFIGURATIONS.read_text())
