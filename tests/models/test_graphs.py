"""The forward pass through the kernels, and as a CUDA graph.

Without a GPU the kernels run in Triton's interpreter, and graphs are a stand-in (`captured`).
"""

from collections import Counter
from copy import copy
from functools import partial
from inspect import signature

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.kernels import attention, norm, rotary, swiglu
from specquant.measure.passes import prepare_passes
from specquant.models import graphs, llama
from specquant.models.graphs import CapturedCache, GraphedLlama, graphed
from specquant.models.llama import causal_mask
from specquant.models.synthetic import synthetic_config, synthetic_model
from specquant.quant import SCHEMES, PackedLinear, packed
from tests.family import small_llama
from tests.replays import assert_replays_give

CONTEXT = 40
TREE = torch.tensor(  # rows and columns: root, two children, a child of each
    [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]], dtype=torch.bool
)
DEPTHS = torch.tensor([0, 1, 1, 2, 2])
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@pytest.fixture
def small_config():
    return small_llama(max_position_embeddings=128)


def model_in(scheme, small_config, dtype=torch.float16, device="cpu"):
    return synthetic_model(small_config, scheme, 128, dtype, device)


@pytest.fixture
def with_kernels(device, monkeypatch):
    """A call that lets all operations run their kernels, in the interpreter where there is no GPU."""

    def switch():
        for module in (attention, llama, norm, rotary, swiglu, packed):
            monkeypatch.setattr(module, "on_gpu", lambda x: x.dtype != torch.float64)

    return switch


def verify(model, rows=5, context=CONTEXT, before_verifying=lambda: None):
    """Features and logits of a tree of five rows, or of a chain, behind a context."""
    tokens = torch.arange(context + rows, device=model.device) * 37 % 251
    cache = model.new_cache(128)
    model.prefill(tokens[:context], cache)
    before_verifying()
    depths = DEPTHS if rows == 5 else torch.arange(rows)
    mask = TREE if rows == 5 else causal_mask(rows, "cpu")
    features = model(tokens[context:], depths.to(model.device), cache, mask.to(model.device))
    return features.clone(), model.logits(features).clone()


def error(result, exact):
    return ((result.double() - exact).norm() / exact.norm()).item()


@every_scheme
def test_the_pass_through_the_kernels_is_the_reference(scheme, small_config, with_kernels):
    """As near to what float64 gives as the references in float16 are."""
    small_config.num_hidden_layers = 1
    exact = verify(model_in(scheme, small_config, torch.float64))[1]
    model = model_in(scheme, small_config)
    reference = verify(model)[1]
    result = verify(model, before_verifying=with_kernels)[1]
    assert result.dtype == torch.float16
    assert error(result, exact) < 1.5 * error(reference, exact) + 1e-3


@pytest.mark.parametrize(("scheme", "launches"), [("w4a16-g128", 10), ("w8a8", 12), ("w4a8-qqq-g128", 12), ("fp16", 6)])
def test_a_layer_is_few_launches(scheme, launches, small_config, with_kernels, monkeypatch):
    """A norm with the sum before it, four products, rotation with the write to the cache, two of attention, the gated
    activation. Where products multiply int8 codes, norms make them; attention's output takes a launch, and so may the
    activation's. cuBLAS's four products are not counted."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    counted = []
    launch = interpreter.GridExecutor.__call__
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *a, **k: (counted.append(a), launch(*a, **k))[1])
    per_model = []
    for layers in (1, 2):
        small_config.num_hidden_layers = layers
        model = model_in(scheme, small_config)
        with_kernels()
        cache, tokens = model.new_cache(8), torch.tensor([3])
        counted.clear()
        model(tokens, torch.tensor([0]), cache, causal_mask(1, "cpu"))
        per_model.append(len(counted))
    assert per_model[1] - per_model[0] == launches
    assert per_model[0] == launches + 1  # the first norm


@pytest.mark.bits
@pytest.mark.parametrize("scheme", ["fp16", "w8a8", "w4a16-g128", "w4a8-fp8-g128"])
def test_rows_of_a_tree_have_the_bits_of_decoding_one_by_one(scheme, small_config, with_kernels):
    """Where that is asked for: each path of the tree, token by token, gives the logits of its rows."""
    model = model_in(scheme, small_config)
    model.make_row_invariant()
    tokens, cache = torch.arange(CONTEXT + 5), model.new_cache(128)
    model.prefill(tokens[:CONTEXT], cache)
    with_kernels()
    together = model.logits(model(tokens[CONTEXT:], DEPTHS, cache, TREE))
    for path in ([0, 1, 3], [0, 2, 4]):
        cache.truncate(CONTEXT)
        for row in path:
            alone = model.logits(model(tokens[CONTEXT + row, None], DEPTHS[:1], cache, causal_mask(1, "cpu")))
            assert torch.equal(alone[0], together[row]), (path, row)
            cache.confirm(1)


@pytest.mark.parametrize(
    ("matrix", "in_front"),
    [
        ("qkv_proj", {"add_rms_norm 0", "add_rms_norm 2"}),  # of two layers
        ("o_proj", {"rotate_and_cache 0", "tree_attention 0", "rotate_and_cache 1", "tree_attention 1"}),
        ("gate_up_proj", {"add_rms_norm 1", "add_rms_norm 3"}),
        ("down_proj", {"swiglu 0", "swiglu 1"}),
    ],
)
def test_operations_in_front_of_a_product_know_whether_it_starts_early(matrix, in_front, small_config, monkeypatch):
    model, early, count = model_in("w4a16-g128", small_config, torch.float32), set(), Counter()
    for layer in model.layers:
        monkeypatch.setattr(getattr(layer, matrix), "starts_early", lambda x: True)

    def note():
        for name in ("add_rms_norm", "swiglu", "rotate_and_cache", "tree_attention"):
            monkeypatch.setattr(llama, name, partial(noted, name, getattr(llama, name)))

    def noted(name, run, *arguments, **options):
        if signature(run).bind(*arguments, **options).arguments.get("next_early"):
            early.add(f"{name} {count[name]}")
        count[name] += 1
        return run(*arguments, **options)

    verify(model, before_verifying=note)
    assert early == in_front


@pytest.mark.bits
def test_a_graph_gives_what_the_model_gives(small_config, captured):
    """Bit for bit, for each length of the context and each number of rows."""
    model = model_in("w4a16-g128", small_config)
    wrapped = GraphedLlama(model)
    for rows, context in ((5, 40), (1, 7), (5, 13), (64, 33)):
        for ours, theirs in zip(verify(wrapped, rows, context), verify(model, rows, context), strict=True):
            assert torch.equal(ours, theirs)
    assert len(captured) == 4  # each call has a cache of its own


@pytest.mark.bits
@pytest.mark.parametrize("scheme", ["w4a16-g128", "w4a8-qqq"])
def test_kernels_read_the_length_from_the_device(scheme, small_config, captured, with_kernels):
    model = model_in(scheme, small_config)
    tokens, cache = torch.arange(CONTEXT + 5), model.new_cache(128)
    model.prefill(tokens[:CONTEXT], cache)
    with_kernels()
    ours, theirs = (run(tokens[CONTEXT:], DEPTHS, cache, TREE) for run in (GraphedLlama(model), model))
    assert torch.equal(ours, theirs)


@pytest.mark.bits
def test_one_graph_serves_all_positions_of_a_cache(small_config, captured):
    model = model_in("w8a8", small_config)
    wrapped = GraphedLlama(model)
    caches = [model.new_cache(64) for _ in range(2)]
    for position in range(6):
        token, depth, mask = torch.tensor([position * 11]), torch.tensor([0]), causal_mask(1, "cpu")
        ours, theirs = wrapped(token, depth, caches[0], mask), model(token, depth, caches[1], mask)
        assert torch.equal(ours, theirs)
        for cache in caches:
            cache.confirm(1)
    assert len(captured) == 1
    wrapped(token, depth, model.new_cache(8), mask)
    assert len(captured) == 2


@pytest.mark.bits
def test_logits_come_from_the_graph(small_config, captured, monkeypatch):
    model = model_in("fp16", small_config)
    wrapped = GraphedLlama(model)
    tokens, depths, cache = torch.arange(4), torch.arange(4), model.new_cache(16)
    features = wrapped(tokens, depths, cache, causal_mask(4, "cpu"))
    expected = model.logits(features)
    monkeypatch.setattr(model, "logits", lambda _: pytest.fail("these were computed already"))
    assert torch.equal(wrapped.logits(features), expected)
    assert torch.equal(wrapped.logits(features[1:]), expected[1:])
    assert torch.equal(wrapped.logits(features[3:]), expected[3:])
    monkeypatch.undo()
    for other in (features.clone(), features[::2], features[[1, 3]]):
        torch.testing.assert_close(wrapped.logits(other), model.logits(other))


@pytest.mark.bits
def test_what_no_graph_serves_runs_as_before(small_config, captured):
    model = model_in("fp16", small_config)
    wrapped = GraphedLlama(model)
    tokens, cache = torch.arange(65), model.new_cache(70)
    many = wrapped(tokens, tokens, cache, causal_mask(65, "cpu"))
    assert torch.equal(many, model(tokens, tokens, cache, causal_mask(65, "cpu")))
    wrapped(tokens[:1], tokens[:1], cache, torch.ones(1, 3, dtype=torch.bool))
    assert not captured
    wrapped(tokens[:64], tokens[:64], cache, causal_mask(64, "cpu"))
    assert len(captured) == 1
    assert wrapped.config is model.config


def test_a_full_cache_is_refused_before_the_graph(small_config, captured):
    wrapped = GraphedLlama(model_in("fp16", small_config))
    cache = wrapped.new_cache(4)
    cache.length = 3
    with pytest.raises(SpecquantError, match="holds 4 positions and this pass needs 5"):
        wrapped(torch.arange(2), torch.arange(2), cache, causal_mask(2, "cpu"))


def test_on_a_cpu_the_model_stays_as_it_is(small_config):
    model = model_in("fp16", small_config)
    assert graphed(model) is model


@pytest.mark.gpu
@every_scheme
def test_on_a_gpu_graphs_equal_launches(scheme, small_config):
    """Bit for bit from 1 to 64 rows, and near what the CPU computes."""
    model = model_in(scheme, small_config, device="cuda")
    wrapped = graphed(model)
    assert isinstance(wrapped, GraphedLlama)
    for rows in (1, 2, 5, 16, 17, 33, 64):
        results = verify(wrapped, rows)
        for ours, theirs in zip(results, verify(model, rows), strict=True):
            assert torch.equal(ours, theirs)
        assert results[1].isfinite().all()


def test_a_model_of_the_methods_is_timed_as_it_is(small_config, captured, monkeypatch):
    """It has graphs already, and a graph cannot be captured inside another."""
    monkeypatch.setattr(graphs, "capturable", lambda _: True)
    model = graphed(model_in("fp16", small_config, torch.float32))
    assert graphed(model) is model
    passes = prepare_passes(model, [1, 4], context_length=8)
    assert [len(run()) for run in passes.values()] == [1, 4]
    assert len(captured) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 8, 16])
@every_scheme
def test_products_that_start_early_read_what_the_kernels_in_front_of_them_wrote(scheme, rows, monkeypatch):
    """Two layers of Llama-3-8B, whose shapes are recorded for warp groups. In a graph, where kernels overlap, a pass
    has the bits that it has where no product starts early. What does not wait reads too early only now and then."""
    config = copy(synthetic_config("llama-3-8b"))
    config.num_hidden_layers, config.vocab_size = 2, 1024
    model = synthetic_model(config, scheme, 256, device="cuda")
    tokens = torch.arange(rows, device="cuda")
    cache = model.new_cache(256)
    cache.confirm(128)
    cache = CapturedCache(cache, torch.zeros(1, dtype=torch.int64, device="cuda"))

    def run():
        return model(tokens, tokens, cache, causal_mask(rows, "cuda"))

    with torch.inference_mode():
        with monkeypatch.context() as without:
            without.setattr(PackedLinear, "starts_early", lambda self, x: False)
            expected = run().clone()
        assert expected.isfinite().all()
        run()
        assert_replays_give(expected, run)
