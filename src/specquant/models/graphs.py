"""Passes of a few rows as CUDA graphs: a pass is hundreds of launches, and one by one they take longer than they run.

What a graph reads stays at its place in device memory: tokens, depths, mask, and the length of the cache. So nothing
waits for the host, and a graph serves every position. An EAGLE-2 draft is such a graph, too (`drafters.eagle2`).
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch

from specquant.kernels.attention import HEAD_DIMS
from specquant.kernels.launch import on_gpu
from specquant.models.cache import KVCache
from specquant.models.eagle import DraftHead
from specquant.models.llama import Llama

MOST_ROWS = 64


def graphed(model: "Llama | GraphedLlama") -> "Llama | GraphedLlama":
    """The model with its passes as CUDA graphs where all of its operations have kernels, else the model as it is; one
    that has them stays as it is."""
    return GraphedLlama(model) if capturable(model) and not isinstance(model, GraphedLlama) else model


def capturable(model: Llama | DraftHead) -> bool:
    """Whether all operations of a model have kernels where it is, so that its passes can be captured."""
    weight = model.embed_tokens.weight
    return on_gpu(weight) and weight.dtype in (torch.float16, torch.bfloat16) and model.config.head_dim in HEAD_DIMS


class GraphedLlama:
    """A Llama whose passes of up to 64 rows are CUDA graphs, LM head included, one for each cache and number of rows.

    It is called as the model is, and everything else is the model's. A graph is captured when it is first needed, which
    takes as long as a few passes. Other passes (a prompt's chunks) run launch by launch. The features and logits of a
    pass hold until the next one.
    """

    def __init__(self, model: Llama):
        self.model = model
        self._passes: WeakKeyDictionary[KVCache, dict[tuple, CapturedPass]] = WeakKeyDictionary()
        self._latest: CapturedPass | None = None
        self._pool = torch.cuda.graph_pool_handle()  # graphs share the memory in which they do not keep results

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def __call__(self, tokens: torch.Tensor, depths: torch.Tensor, cache: KVCache, mask: torch.Tensor) -> torch.Tensor:
        """As `Llama.forward`."""
        return self.run(tokens, depths, cache, mask, ())[0]

    @torch.inference_mode()
    def run(
        self,
        tokens: torch.Tensor,
        depths: torch.Tensor,
        cache: KVCache,
        mask: torch.Tensor,
        layers: tuple[int, ...],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Llama.run`; a graph hands out the streams of the layers that it was captured for."""
        rows = len(tokens)
        if rows > MOST_ROWS or mask.shape[1] > rows:
            return self.model.run(tokens, depths, cache, mask, layers)
        cache.require(rows)
        passes, kind = self._passes.setdefault(cache, {}), (rows, layers)
        if kind not in passes:
            passes[kind] = CapturedPass(self.model, cache, rows, self._pool, layers)
        self._latest = passes[kind]
        return self._latest.run(tokens, depths, cache.length, mask), self._latest.streams

    @torch.inference_mode()
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """As `Llama.logits`; what the latest pass returned, or successive rows of it, has its logits already."""
        known = self._latest.logits_of(features) if self._latest else None
        return self.model.logits(features) if known is None else known


class CapturedPass:
    """A pass of a fixed number of rows behind one cache, with all that it reads and writes."""

    def __init__(self, model: Llama, cache: KVCache, rows: int, pool: tuple[int, int], layers: tuple[int, ...] = ()):
        device = model.device
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.depths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.mask = torch.eye(rows, dtype=torch.bool, device=device)
        self.cache = CapturedCache(cache, torch.zeros(1, dtype=torch.int64, device=device))

        def run() -> tuple[torch.Tensor, ...]:
            features, streams = model.run(self.tokens, self.depths, self.cache, self.mask, layers)
            return features, model.logits(features), *([streams] if layers else [])

        self.replay, (self.features, self.logits, *streams) = capture(run, pool)
        self.streams = streams[0] if streams else self.features

    def run(self, tokens: torch.Tensor, depths: torch.Tensor, length: int, mask: torch.Tensor) -> torch.Tensor:
        """The features [rows, hidden] of these rows behind `length` confirmed slots."""
        self.tokens.copy_(tokens)
        if len(tokens) > 1:  # a row alone has depth 0 and sees itself, as it was captured
            self.depths.copy_(depths)
            self.mask.copy_(mask)
        self.cache.length.fill_(length)
        self.replay()
        return self.features

    def logits_of(self, features: torch.Tensor) -> torch.Tensor | None:
        """The logits of features that are successive rows of this pass's; None of others."""
        ours = self.features
        if features.untyped_storage().data_ptr() != ours.untyped_storage().data_ptr():
            return None
        first, inside = divmod(features.storage_offset() - ours.storage_offset(), ours.shape[1])
        if inside or features.shape[1:] != ours.shape[1:] or not features.is_contiguous():
            return None
        return self.logits[first : first + len(features)]


class CapturedCache:
    """A cache as a graph sees it: the same slots, with the length in device memory, int64 [1]."""

    def __init__(self, cache: KVCache, length: torch.Tensor):
        self.keys, self.values, self.length = cache.keys, cache.values, length
        # The first pass, before the graph is replayed, writes where any other would: behind the confirmed slots.
        length.fill_(cache.length)

    def require(self, slots: int) -> None:
        """Room is checked before the graph is replayed."""


captures = 0  # graphs that this process made: a time in which one was made is not that of a step


def capture(
    run: Callable[[], tuple[torch.Tensor, ...]], pool: tuple[int, int]
) -> tuple[Callable[[], None], tuple[torch.Tensor, ...]]:
    """A CUDA graph of what `run` launches: how to replay it, and the tensors to which it then writes the results."""
    global captures
    captures += 1
    run()  # compiles kernels and makes what outlives the pass; neither may happen during capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        results = run()
    return graph.replay, results
