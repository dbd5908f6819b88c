import pytest
import torch

from specquant.errors import SpecquantError
from specquant.measure import kernels, peers
from specquant.measure.measure import record
from specquant.tables.results import read_results

PRODUCTS = {"w4a16-g128": peers.int4_of_torch, "fp8": peers.fp8_of_torch}


@pytest.fixture
def small_layers(monkeypatch, in_process):
    monkeypatch.setattr(kernels, "ROTATED_BYTES", 2e5)
    layers = {"small": {"qkv_proj": (128, 256), "o_proj": (256, 128)}}
    for module in (kernels, peers):
        monkeypatch.setattr(module, "LAYERS", layers)
    return in_process


@pytest.mark.parametrize("scheme", PRODUCTS)
def test_torch_multiplies_our_matrices(small_layers, scheme):
    matrices = kernels.synthetic_matrices(scheme, 256, 128, "cpu")
    x = torch.randn(5, 128)
    launch = PRODUCTS[scheme](matrices, 5, x)
    for turn, matrix in enumerate(matrices):
        error = (launch(turn).float() - matrix(x)).norm() / matrix(x).norm()
        assert error < 0.01


@pytest.mark.parametrize("scheme", PRODUCTS)
def test_a_product_of_another_matrix_is_not_timed(small_layers, scheme):
    matrix, other = (kernels.synthetic_matrices(scheme, 256, 128, "cpu")[0] for _ in range(2))
    peers.require_same_product("torch", matrix, PRODUCTS[scheme])
    other.scales *= 1.05
    with pytest.raises(SpecquantError, match="torch gives another product"):
        peers.require_same_product("torch", matrix, lambda _, rows, x: PRODUCTS[scheme]([other], rows, x))


def test_every_product_of_a_layer_is_recorded_for_each_process(small_layers, tmp_path):
    few = {"repeats": 2, "warm_up_ms": 0.0, "device": "cpu"}
    parameters = peers.Parameters(("small",), (1, 3), processes=2, **few)
    rows = read_results(record(peers.MEASURE, parameters, tmp_path))
    assert len(rows) == 5 * 2 * 2 * 2  # products, layers, draft sizes, processes
    told = set(rows[["scheme", "implementation"]].itertuples(index=False, name=None))
    ours = {(scheme, "reference") for scheme in ("w4a16-g128", "fp8", "fp16")}  # on a CPU no kernel of ours runs
    assert told == ours | {("w4a16-g128", peers.INT4), ("fp8", peers.FP8)}
    assert (rows.time_us > 0).all()
