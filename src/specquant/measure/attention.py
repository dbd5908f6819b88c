"""What the operations around the linear products cost on a GPU, at the shapes of Llama-3-70B: attention, the fused
neighbours, and what drafting does on the device."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from specquant.files import resolve
from specquant.kernels.acceptance import accept_greedily
from specquant.kernels.attention import tree_attention, tree_attention_reference
from specquant.kernels.compaction import keep_path
from specquant.kernels.norm import add_rms_norm
from specquant.kernels.rotary import rotate_and_cache
from specquant.kernels.swiglu import swiglu
from specquant.kernels.top_k import log_softmax_top_k
from specquant.kernels.tree import Frontier, Proposals, ancestors_of, expand, rerank
from specquant.measure.kernels import ROTATED_BYTES, WARM_UP_MS, replay_times_us, require_gpu
from specquant.measure.passes import DRAFT_SIZES
from specquant.tables.results import write_results

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 80, 8192, 28672, 64, 8, 128, 128256
CONTEXT_LENGTHS = (512, 4096, 32768)
Case = tuple[str, str, int, int, int, int, list[Callable[[], object]]]


def attention_cost(
    draft_sizes: Sequence[int] = DRAFT_SIZES, context_lengths: Sequence[int] = CONTEXT_LENGTHS, repeats: int = 30
) -> pd.DataFrame:
    """Time attention by draft size and context length: the kernel, its row-invariant form, and torch's attention.

    The keys and values are rotated through more than the GPU's cache holds. Returns one row for each case: operation,
    implementation, weights, draft_size, context_length, time_us, p10_us, p90_us, bytes (that must be moved),
    operations, repeats.
    """
    cases = (case for length in context_lengths for size in draft_sizes for case in _attention(size, length))
    return _table(cases, repeats)


def neighbour_cost(draft_sizes: Sequence[int] = DRAFT_SIZES, repeats: int = 30) -> pd.DataFrame:
    """Time the other operations by draft size; their inputs come from the GPU's cache, as they do in a model. Returns
    the columns of `attention_cost`; context_length is 0."""
    return _table((case for size in draft_sizes for case in _neighbours(size)), repeats)


def _table(cases: Iterator[Case], repeats: int) -> pd.DataFrame:
    require_gpu("cuda")
    rows = []
    for operation, implementation, draft_size, context_length, moved, operations, runs in cases:
        times = replay_times_us(lambda turn: runs[turn](), len(runs), repeats, WARM_UP_MS).double()  # noqa: B023
        median, p10, p90 = times.quantile(torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)).tolist()
        rows.append(
            {"operation": operation, "implementation": implementation, "weights": "synthetic"}
            | {"draft_size": draft_size, "context_length": context_length}
            | {"time_us": median, "p10_us": p10, "p90_us": p90}
            | {"bytes": moved, "operations": operations, "repeats": repeats}
        )
    return pd.DataFrame(rows)


def _random_tree(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Parents and ancestors of a random tree of n nodes, as deep as EAGLE-2's."""
    generator = torch.Generator().manual_seed(n)
    parents = torch.tensor(
        [-1] + [int(torch.randint(max(0, i - 12), i, (1,), generator=generator)) for i in range(1, n)]
    )
    return parents.cuda(), ancestors_of(parents).cuda()


def _attention(draft_size: int, context_length: int) -> Iterator[Case]:
    used = context_length + draft_size
    moved = 2 * KV_HEADS * used * HEAD_DIM * 2 + 2 * draft_size * HEADS * HEAD_DIM * 2
    operations = 4 * draft_size * used * HEADS * HEAD_DIM
    caches = torch.randn(
        int(ROTATED_BYTES // moved) + 2, 2, KV_HEADS, used, HEAD_DIM, dtype=torch.float16, device="cuda"
    )
    query = torch.randn(draft_size, HEADS, HEAD_DIM, dtype=torch.float16, device="cuda")
    _, mask = _random_tree(draft_size)
    length = torch.tensor(context_length, device="cuda")
    for implementation, attend, prefix, options in (
        ("triton", tree_attention, length, {}),
        ("triton, row-invariant", tree_attention, length, {"row_invariant": True}),
        ("torch", tree_attention_reference, context_length, {}),
    ):
        runs = [partial(attend, query, *cache, prefix, mask, **options) for cache in caches]
        yield "attention", implementation, draft_size, context_length, moved, operations, runs


def _neighbours(draft_size: int) -> Iterator[Case]:
    n = draft_size

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float16, device="cuda")

    def case(operation: str, moved: int, run: Callable[[], object], implementation: str = "triton") -> Case:
        return operation, implementation, n, 0, moved, 0, [run]

    x, delta, weight = random(n, HIDDEN), random(n, HIDDEN), random(HIDDEN)
    yield case("add and norm", 8 * n * HIDDEN, lambda: add_rms_norm(x, delta, weight, 1e-5))
    yield case("add, norm and quantize", 7 * n * HIDDEN, lambda: add_rms_norm(x, delta, weight, 1e-5, quantized=True))
    gate_up = random(n, 2 * INNER)
    yield case("swiglu", 6 * n * INNER, lambda: swiglu(gate_up))
    yield case("swiglu and quantize", 5 * n * INNER, lambda: swiglu(gate_up, quantized=True))
    qkv, (keys, values) = random(n, (HEADS + 2 * KV_HEADS) * HEAD_DIM), random(2, KV_HEADS, 4096, HEAD_DIM)
    tables, positions = random(2, 4096, HEAD_DIM), torch.arange(n, device="cuda")
    first_slot = torch.tensor(1000, device="cuda")
    yield case(
        "rotate and cache",
        4 * qkv.numel(),
        lambda: rotate_and_cache(qkv, *tables, positions, keys, values, first_slot),
    )
    logits, (parents, ancestors) = random(n, VOCABULARY), _random_tree(n)
    tokens = torch.randint(VOCABULARY, (n,), device="cuda")
    yield case("log-softmax and top-10", 2 * logits.numel(), lambda: log_softmax_top_k(logits, 10))
    yield case("greedy acceptance", 2 * logits.numel(), lambda: accept_greedily(tokens, parents, ancestors, logits))
    if n == 64:
        yield from (case(*rest) for rest in _drafting())


def _drafting() -> Iterator[tuple[str, int, Callable[[], object]]]:
    """What is done once a level, a draft or a step, whatever the draft size."""
    k, levels = 10, 6
    proposals = Proposals.under(
        torch.zeros(1, dtype=torch.int64, device="cuda"), 1 + k + (levels - 1) * k * k, torch.float32
    )
    log_p, tokens = log_softmax_top_k(torch.randn(k, VOCABULARY, device="cuda"), k)
    frontier = expand(proposals, 1, Frontier.root(proposals), log_p[:1], tokens[:1])
    for level in range(1, levels):
        frontier = expand(proposals, 1 + k + (level - 1) * k * k, frontier, log_p, tokens)
    yield "expand", 24 * k * k, lambda: expand(proposals, 1 + k, frontier, log_p, tokens)
    yield "rerank", 20 * len(proposals.tokens), lambda: rerank(proposals, 60)
    cache = torch.randn(2, LAYERS, KV_HEADS, 1024, HEAD_DIM, dtype=torch.float16, device="cuda")
    length, path = torch.tensor(900, device="cuda"), torch.tensor([0, 2, 9, 31, 50, -1, -1], device="cuda")
    yield "keep path", 4 * 2 * 4 * LAYERS * KV_HEADS * HEAD_DIM, lambda: keep_path(*cache, length, path)


def record_attention(
    out_dir: str | Path,
    draft_sizes: Sequence[int] = (1, 8, 16, 32, 64),
    context_lengths: Sequence[int] = (512, 2048, 4096, 8192, 32768),
    repeats: int = 10,
) -> Path:
    """Measure attention and the other operations between the products at Llama-3-70B's shapes: attention.csv."""
    parameters = {"draft_sizes": list(draft_sizes), "context_lengths": list(context_lengths)}
    parts = attention_cost(draft_sizes, context_lengths, repeats), neighbour_cost(draft_sizes, repeats)
    how = {"device": "cuda", "repeats": repeats, "clock": "replays of a CUDA graph, median"}
    return write_results(pd.concat(parts), resolve(out_dir) / "attention.csv", parameters, **how)
