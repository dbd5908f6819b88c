"""What do the operations around the linear products cost, at the shapes of Llama-3-70B?

Attention, the fused neighbours, and what drafting does on the device.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch

from specquant.kernels.acceptance import accept_greedily
from specquant.kernels.attention import tree_attention, tree_attention_reference
from specquant.kernels.compaction import keep_path
from specquant.kernels.norm import add_rms_norm
from specquant.kernels.rotary import rotate_and_cache
from specquant.kernels.swiglu import swiglu
from specquant.kernels.top_k import log_softmax_top_k
from specquant.kernels.tree import Frontier, Proposals, ancestors_of, expand, rerank
from specquant.measure.blocks import LaunchesInBlocks, launches_in_blocks
from specquant.measure.checks import require_draft_sizes
from specquant.measure.kernels import REFERENCE, ROTATED_BYTES
from specquant.measure.measure import Measure, Measured
from specquant.tables.schemas import TABLES

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 80, 8192, 28672, 64, 8, 128, 128256
DRAFT_SIZE_WITH_DRAFTING = 64  # what is done once a draft is timed beside this one


class Case(NamedTuple):
    """An operation to time.

    context_length: 0 where none matters. bytes: that must be moved. launches: the same on other memory each, in turn.
    """

    operation: str
    implementation: str
    draft_size: int
    context_length: int
    bytes: int
    operations: int
    launches: Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Parameters(LaunchesInBlocks):
    """What to time.

    Attention over drafts of these sizes behind each context: the kernel, its row-invariant form, and torch's (on a CPU
    the reference alone); its keys and values are rotated through more than the GPU's cache holds. The other operations
    have no context; their inputs come from the GPU's cache, as they do in a model.

    Attributes:
        draft_sizes: Tokens in a pass, with commas.
        context_lengths: Tokens in the cache, with commas.
    """

    draft_sizes: tuple[int, ...] = (1, 8, 16, 32, 64)
    context_lengths: tuple[int, ...] = (512, 2048, 4096, 8192, 32768)
    repeats: int = field(default=10, kw_only=True)

    shared = ("draft_sizes", *LaunchesInBlocks.shared)

    def check(self) -> None:
        """Raises SpecquantError where there is no GPU, and for numbers out of range."""
        super().check()
        require_draft_sizes(self.draft_sizes)

    def units(self) -> list[dict[str, Any]]:
        return [
            {"weights": "synthetic", "context_length": context_length, "process": process}
            for process in range(self.processes)
            for context_length in (0, *self.context_lengths)
        ]


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Time all operations of each context in blocks."""
    return parameters.each(units, lambda unit, order: time_cases(parameters, unit["context_length"], order))


def time_cases(parameters: Parameters, context_length: int, order: random.Random) -> pd.DataFrame:
    """A row for each block of each case."""
    cases = [case for size in parameters.draft_sizes for case in _cases(size, context_length, parameters.device)]
    launches = {
        at: (lambda turn, case=case: case.launches[turn](), len(case.launches)) for at, case in enumerate(cases)
    }
    rows = launches_in_blocks(launches, torch.device(parameters.device), parameters.block, order)
    about = pd.DataFrame(cases).drop(columns=["launches", "context_length"])
    return rows.join(about, on="what").drop(columns="what")


def _cases(draft_size: int, context_length: int, device: str) -> Iterator[Case]:
    return _attention(draft_size, context_length, device) if context_length else _neighbours(draft_size, device)


def _random_tree(n: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Parents and ancestors of a random tree of n nodes, as deep as EAGLE-2's."""
    generator = torch.Generator().manual_seed(n)
    parents = torch.tensor(
        [-1] + [int(torch.randint(max(0, i - 12), i, (1,), generator=generator)) for i in range(1, n)]
    )
    return parents.to(device), ancestors_of(parents).to(device)


def _attention(draft_size: int, context_length: int, device: str) -> Iterator[Case]:
    used = context_length + draft_size
    moved = 2 * KV_HEADS * used * HEAD_DIM * 2 + 2 * draft_size * HEADS * HEAD_DIM * 2
    operations = 4 * draft_size * used * HEADS * HEAD_DIM
    caches = torch.randn(
        int(ROTATED_BYTES // moved) + 2, 2, KV_HEADS, used, HEAD_DIM, dtype=torch.float16, device=device
    )
    query = torch.randn(draft_size, HEADS, HEAD_DIM, dtype=torch.float16, device=device)
    _, mask = _random_tree(draft_size, device)
    length = torch.tensor(context_length, device=device)
    attends: list[tuple[str, Callable[..., torch.Tensor], int | torch.Tensor, dict[str, bool]]] = [
        ("triton", tree_attention, length, {}),
        ("triton, row-invariant", tree_attention, length, {"row_invariant": True}),
        ("torch", tree_attention_reference, context_length, {}),
    ]
    if device == "cpu":
        attends = [(REFERENCE, tree_attention_reference, context_length, {})]
    for implementation, attend, prefix, options in attends:
        runs = [partial(attend, query, keys, values, prefix, mask, **options) for keys, values in caches]
        yield Case("attention", implementation, draft_size, context_length, moved, operations, runs)


def _neighbours(draft_size: int, device: str) -> Iterator[Case]:
    n = draft_size

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float16, device=device)

    def case(operation: str, moved: int, run: Callable[[], object]) -> Case:
        return Case(operation, REFERENCE if device == "cpu" else "triton", n, 0, moved, 0, [run])

    x, delta, weight = numbers(n, HIDDEN), numbers(n, HIDDEN), numbers(HIDDEN)
    yield case("add and norm", 8 * n * HIDDEN, lambda: add_rms_norm(x, delta, weight, 1e-5))
    yield case("add, norm and quantize", 7 * n * HIDDEN, lambda: add_rms_norm(x, delta, weight, 1e-5, quantized=True))
    gate_up = numbers(n, 2 * INNER)
    yield case("swiglu", 6 * n * INNER, lambda: swiglu(gate_up))
    yield case("swiglu and quantize", 5 * n * INNER, lambda: swiglu(gate_up, quantized=True))
    qkv, (keys, values) = numbers(n, (HEADS + 2 * KV_HEADS) * HEAD_DIM), numbers(2, KV_HEADS, 4096, HEAD_DIM)
    tables, positions = numbers(2, 4096, HEAD_DIM), torch.arange(n, device=device)
    first_slot = torch.tensor(1000, device=device)
    yield case(
        "rotate and cache",
        4 * qkv.numel(),
        lambda: rotate_and_cache(qkv, tables[0], tables[1], positions, keys, values, first_slot),
    )
    logits, (parents, ancestors) = numbers(n, VOCABULARY), _random_tree(n, device)
    tokens = torch.randint(VOCABULARY, (n,), device=device)
    yield case("log-softmax and top-10", 2 * logits.numel(), lambda: log_softmax_top_k(logits, 10))
    yield case("greedy acceptance", 2 * logits.numel(), lambda: accept_greedily(tokens, parents, ancestors, logits))
    if n == DRAFT_SIZE_WITH_DRAFTING:
        yield from (case(*rest) for rest in _drafting(device))


def _drafting(device: str) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """What is done once a level, a draft or a step, whatever the draft size."""
    k, levels = 10, 6
    proposals = Proposals.under(
        torch.zeros(1, dtype=torch.int64, device=device), 1 + k + (levels - 1) * k * k, torch.float32
    )
    log_p, tokens = log_softmax_top_k(torch.randn(k, VOCABULARY, device=device), k)
    frontier = expand(proposals, 1, Frontier.root(proposals), log_p[:1], tokens[:1])
    for level in range(1, levels):
        frontier = expand(proposals, 1 + k + (level - 1) * k * k, frontier, log_p, tokens)
    yield "expand", 24 * k * k, lambda: expand(proposals, 1 + k, frontier, log_p, tokens)
    yield "rerank", 20 * len(proposals.tokens), lambda: rerank(proposals, 60)
    cache = torch.randn(2, LAYERS, KV_HEADS, 1024, HEAD_DIM, dtype=torch.float16, device=device)
    length, path = torch.tensor(900, device=device), torch.tensor([0, 2, 9, 31, 50, -1, -1], device=device)
    yield "keep path", 4 * 2 * 4 * LAYERS * KV_HEADS * HEAD_DIM, lambda: keep_path(cache[0], cache[1], length, path)


MEASURE = Measure((TABLES["attention"],), Parameters, run, "replays of a CUDA graph, median of a block")
