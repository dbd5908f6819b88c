"""How fast the linear products are: each layer of a model alone, on a GPU, with weights that no cache holds."""

import copy
import itertools
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import pandas as pd
import torch
from tqdm import tqdm

from specquant.errors import SpecquantError
from specquant.experiments.compatibility import DRAFT_SIZES
from specquant.files import write_file
from specquant.kernels.fp8 import multiplies_e4m3
from specquant.kernels.launch import multiprocessors, triton
from specquant.kernels.products import CONFIGURATIONS, GROUP, Configuration, configuration, gpu_kind, winners
from specquant.kernels.stream import read_triton
from specquant.kernels.w4a16_hopper import REGISTERS, SLAB, TABLE, WarpGroups
from specquant.models.graphs import MOST_ROWS, CapturedCache
from specquant.models.llama import causal_mask
from specquant.models.synthetic import synthetic_config, synthetic_model
from specquant.quant import PackedLinear, get_scheme, quantize_linear, scheme_names

# Outputs and inputs of the four linear layers, q, k, v and gate, up fused.
LAYERS = {
    "llama-3-8b": {
        "qkv_proj": (6144, 4096),
        "o_proj": (4096, 4096),
        "gate_up_proj": (28672, 4096),
        "down_proj": (4096, 14336),
    },
    "llama-3-70b": {
        "qkv_proj": (10240, 8192),
        "o_proj": (8192, 8192),
        "gate_up_proj": (57344, 8192),
        "down_proj": (8192, 28672),
    },
}
BENCH_SCHEMES = tuple(name for name in scheme_names("all") if not name.endswith("-rot"))  # rotation changes no product
FP8_SCHEMES = ("fp8", "w4a8-fp8-g128")  # not the paper's
ROTATED_BYTES = 300e6  # weights are rotated through more than this, several times an L2 cache
# Outputs of a program, stages, warps and registers (0: as many as the compiler likes), by rows of a tile.
CANDIDATES = {
    16: (
        *((64, stages, 4, registers) for stages in (3, 4, 6) for registers in (0, 96)),
        *((128, stages, 4, registers) for stages in (3, 4) for registers in (0, 96, 128)),
        (128, 4, 8, 0),
        (128, 6, 8, 0),
    ),
    32: (
        *((64, stages, 4, registers) for stages in (3, 4) for registers in (0, 96, 128)),
        *((128, stages, warps, 0) for stages in (3, 4) for warps in (4, 8)),
        (256, 3, 8, 0),
    ),
    64: (
        *((64, stages, 4, registers) for stages in (3, 4) for registers in (0, 128, 168)),
        *((128, stages, warps, 0) for stages in (2, 3, 4) for warps in (4, 8)),
        *((256, stages, 8, 0) for stages in (2, 3)),
    ),
}
# Slabs of each warp group of the kernel for Hopper, which is tried for tiles of so many rows.
WARP_GROUP_TILES = (32, 64)
WARP_GROUPS = ((1, 1), (1, 1, 1), (1, 1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2, 1))
SHARED_BYTES = 220_000  # of a multiprocessor, for the stages of a program
SHORTLIST = 6  # candidates that are tried in a layer
LAYER_NOISE = 1.005  # a layer's time often differs by so much from one capture to the next
CONTEXT_LENGTH = 512  # of cached tokens, while layers are timed
GRAPH_US = 1500  # a graph holds launches for about this long
REPEATS = 20
WARM_UP_MS = 200.0  # of what is timed, before it is: what ran before leaves the card in another state
SETTLING_REPEATS = 100  # after matrices were made: until then the first times are up to 15% longer


def bench_schemes() -> tuple[str, ...]:
    """The schemes that are measured by default: those in FP8 where this machine's GPU multiplies it."""
    return BENCH_SCHEMES + (FP8_SCHEMES if multiplies_e4m3("cuda") else ())


def measure_kernels(
    models: Sequence[str] = tuple(LAYERS),
    schemes: Sequence[str] = BENCH_SCHEMES,
    draft_sizes: Sequence[int] = DRAFT_SIZES,
    repeats: int = REPEATS,
    device: str = "cuda",
    row_invariant: bool = False,
) -> Iterator[dict]:
    """Yield one row for each model, layer, scheme and draft size: the time of one product of that many tokens.

    Activations are quantized before; rotated activations, outputs and weights are random. Times are of CUDA graphs'
    replays, divided by the launches in a graph. bytes and operations are what the product cannot do without.
    row_invariant: of the kernels that give a token the same bits whatever the number of tokens.
    """
    require_gpu(device)
    for model, layer, (outputs, inputs) in layers(models):
        for scheme in schemes:
            matrices = synthetic_matrices(scheme, outputs, inputs, device)
            for matrix in matrices:
                matrix.row_invariant = row_invariant
            ordinary = "cuBLAS" if scheme == "fp16" else "specquant"
            product_times_us(matrices, 1, SETTLING_REPEATS)
            in_random_order = random.Random(f"{model} {layer} {scheme}").sample(list(draft_sizes), len(draft_sizes))
            for draft_size in tqdm(in_random_order, desc=f"{model} {layer} {scheme}", leave=False):
                times = product_times_us(matrices, draft_size, repeats, warm_up_ms=WARM_UP_MS)
                bytes_per_token = inputs * get_scheme(scheme).activation_bits // 8 + 2 * outputs
                yield {
                    "model": model,
                    "layer": layer,
                    "scheme": scheme,
                    "implementation": "specquant, row-invariant" if row_invariant else ordinary,
                    "draft_size": draft_size,
                    "in_features": inputs,
                    "out_features": outputs,
                    "time_us": round(times.median().item(), 3),
                    "p10_us": round(times.quantile(0.1).item(), 3),
                    "p90_us": round(times.quantile(0.9).item(), 3),
                    "bytes": matrices[0].nbytes + draft_size * bytes_per_token,
                    "operations": 2 * draft_size * inputs * outputs,
                    "repeats": repeats,
                    "weights": "synthetic",
                }
            del matrices


def measure_ceilings(repeats: int = REPEATS, device: str = "cuda") -> pd.DataFrame:
    """What the GPU reaches at best: read bandwidth, copy bandwidth and matrix rates (what, value, unit, weights)."""
    require_gpu(device)
    rows = []

    def record(what: str, amount: float, unit: str, launch: Callable[[int], object]) -> None:
        value = amount / replay_times_us(launch, 4, repeats).median().item() / 1e6
        rows.append({"what": what, "value": value, "unit": unit, "weights": "synthetic"})

    numbers = torch.randint(0, 1 << 30, (1 << 30,), dtype=torch.int32, device=device)
    first, second = numbers.chunk(2)
    record("read-only stream", numbers.nbytes, "TB/s", lambda _: read_triton(numbers))
    record("device-to-device copy (bytes read and written)", numbers.nbytes, "TB/s", lambda _: first.copy_(second))
    size = 8192
    a, b = torch.randn(2, size, size, device=device, dtype=torch.float16)
    record("fp16 product (cuBLAS)", 2 * size**3, "TFLOP/s", lambda _: a @ b.t())
    c, d = torch.randint(-127, 128, (2, size, size), device=device, dtype=torch.int8)
    record("int8 product (cuBLASLt)", 2 * size**3, "TOP/s", lambda _: torch._int_mm(c, d.t()))
    return pd.DataFrame(rows)


def tune(
    models: Sequence[str],
    schemes: Sequence[str],
    budget_s: float,
    path: str | os.PathLike = CONFIGURATIONS,
    device: str = "cuda",
) -> pd.DataFrame:
    """Measure candidates for every shape and row tile, and write the fastest of each to the table at `path`.

    Each is measured alone, and the fastest few, with what the table has, in a pass of a few decoder layers: between
    other kernels a product's blocks are placed otherwise, and what is best alone may not be there. Stops after
    `budget_s` seconds; a shape and tile that was not measured wholly keeps its configuration. Returns all that was
    measured: alone_us of a product, and layer_us of a layer with it, NaN where it was not tried.
    """
    require_gpu(device)
    device = torch.device(device)
    table = winners()
    rows, end = [], time.monotonic() + budget_s
    for model in models:
        largest_first = sorted((shape for _, _, shape in layers([model])), key=math.prod, reverse=True)
        for scheme in schemes:
            if scheme == "fp16":
                continue  # cuBLAS chooses by itself
            kernel = kernel_name(scheme)
            tables = table.setdefault(gpu_kind(device), {})
            passes = LayersAlone(model, scheme, device)
            for (outputs, inputs), tile in itertools.product(largest_first, CANDIDATES):
                matrices = synthetic_matrices(scheme, outputs, inputs, device)
                product_times_us(matrices, tile, SETTLING_REPEATS)
                alone: dict[Configuration | WarpGroups, float] = {}
                now = configuration(kernel, outputs, inputs, tile, device)
                tried = [now, *candidates(outputs, inputs, tile, device)]
                if kernel == "w4a16" and gpu_kind(device) == "sm90" and tile in WARP_GROUP_TILES:
                    tried += warp_group_candidates(outputs, inputs, tile, device)
                for candidate in dict.fromkeys(tried):
                    if time.monotonic() > end:
                        return pd.DataFrame(rows)
                    with suppress(triton.OutOfResources):
                        alone[candidate] = product_times_us(matrices, tile, 5, candidate).median().item()
                del matrices
                shape, in_layer = f"{outputs}x{inputs}", {}
                for candidate in dict.fromkeys([now, *sorted(alone, key=alone.get)[:SHORTLIST]]):
                    _choose(tables, kernel, shape, tile, candidate)
                    in_layer[candidate] = passes.time_us(tile)
                # Both kernels of W4A16 have their winner: row invariance and bf16 need the ordinary one.
                ordinary = {each: time_us for each, time_us in in_layer.items() if isinstance(each, Configuration)}
                for choice in (ordinary, in_layer):
                    _choose(tables, kernel, shape, tile, _fastest(choice, alone))
                about = {"scheme": scheme, "out_features": outputs, "in_features": inputs, "rows": tile}
                for candidate in dict.fromkeys([*alone, *in_layer]):
                    times = {"alone_us": alone.get(candidate), "layer_us": in_layer.get(candidate)}
                    rows.append(about | _columns(candidate) | times)
                text = json.dumps(table, indent=1)
                write_file(path, re.sub(r"\[[^]]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")
    return pd.DataFrame(rows)


def _fastest(in_layer: dict, alone: dict) -> Configuration | WarpGroups:
    """The fastest alone of those whose times in a layer cannot be told apart."""
    close = LAYER_NOISE * min(in_layer.values())
    return min((each for each, time_us in in_layer.items() if time_us <= close), key=alone.get)


def _choose(tables: dict, kernel: str, shape: str, tile: int, chosen: Configuration | WarpGroups) -> None:
    """Have products of this shape and tile of rows run as `chosen`."""
    if isinstance(chosen, WarpGroups):
        groups = tables.setdefault(TABLE, {}).setdefault(shape, {})
        groups[str(tile)] = [*chosen.slabs, chosen.splits, chosen.stages]
    else:
        if kernel == "w4a16":
            tables.get(TABLE, {}).get(shape, {}).pop(str(tile), None)
        tables.setdefault(kernel, {}).setdefault(shape, {})[str(tile)] = list(chosen)


def _columns(candidate: Configuration | WarpGroups) -> dict:
    """A candidate as a row of the table of what was tried."""
    if isinstance(candidate, Configuration):
        return candidate._asdict()
    slabs, splits, stages = candidate
    warps, registers = 4 * len(slabs), REGISTERS[len(slabs)]
    about = Configuration(SLAB * sum(slabs), splits, stages, warps, registers)._asdict()
    return about | {"slabs": "+".join(map(str, slabs))}


class LayersAlone:
    """As many decoder layers of a model as no cache holds, with random weights, behind a context of 512 tokens."""

    def __init__(self, model: str, scheme: str, device: torch.device):
        config = synthetic_config(model)
        layer_bytes = sum(outputs * inputs for _, _, (outputs, inputs) in layers([model]))
        layer_bytes *= get_scheme(scheme).weight_bits / 8
        config.num_hidden_layers, config.vocab_size = math.ceil(ROTATED_BYTES / layer_bytes) + 1, 1024
        self.model = synthetic_model(config, scheme, CONTEXT_LENGTH + MOST_ROWS, device=device)
        cache = self.model.new_cache(CONTEXT_LENGTH + MOST_ROWS)
        cache.confirm(CONTEXT_LENGTH)
        self.cache = CapturedCache(cache, torch.zeros(1, dtype=torch.int64, device=device))

    @torch.inference_mode()
    def time_us(self, rows: int, repeats: int = REPEATS) -> float:
        """Of one layer, by replays of a CUDA graph, with the configurations that the table has now."""
        tokens = torch.arange(rows, device=self.model.device)
        mask = causal_mask(rows, self.model.device)
        times = replay_times_us(lambda _: self.model(tokens, CONTEXT_LENGTH + tokens, self.cache, mask), 1, repeats)
        return times.median().item() / self.model.config.num_hidden_layers


def candidates(outputs: int, inputs: int, tile: int, device: torch.device) -> Iterator[Configuration]:
    """Configurations worth measuring for a shape [out, in] and a tile of rows."""
    for block, stages, warps, registers in CANDIDATES[tile]:
        # From one and a half to five programs of four warps for each multiprocessor.
        programs = math.ceil(outputs / block) * warps / 4 / multiprocessors(device)
        wanted = {max(1, round(share / programs)) for share in (1.5, 2, 3, 4, 5)}
        for splits in sorted(wanted):
            if splits <= min(16, inputs // GROUP // 4):
                yield Configuration(block, splits, stages, warps, registers)


def warp_group_candidates(outputs: int, inputs: int, tile: int, device: torch.device) -> Iterator[WarpGroups]:
    """Ways to cut up a product of W4A16 for Hopper: one program on each of most of the multiprocessors."""
    available = multiprocessors(device)
    for slabs, splits in itertools.product(WARP_GROUPS, (1, 2, 4, 8)):
        programs = math.ceil(outputs / (SLAB * sum(slabs))) * splits
        stages = min(6, SHARED_BYTES // (sum(slabs) * 4096 + tile * 256))
        if 0.75 * available <= programs <= available and splits <= inputs // GROUP // stages:
            yield WarpGroups(slabs, splits, stages)


def kernel_name(scheme: str) -> str:
    """The name that a scheme's product has in the table of configurations."""
    return "w4a16" if scheme.startswith("w4a16") else scheme


def layers(models: Iterable[str]) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Model, layer and shape [out, in] of every layer. Raises SpecquantError for an unknown model."""
    for model in models:
        if model not in LAYERS:
            raise SpecquantError(f"unknown model {model!r}: choose one of {', '.join(LAYERS)}")
        for layer, shape in LAYERS[model].items():
            yield model, layer, shape


def synthetic_matrices(scheme: str, outputs: int, inputs: int, device: str) -> list[PackedLinear]:
    """As many quantized matrices [out, in] as `ROTATED_BYTES` hold: one of random numbers, and copies elsewhere."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(outputs, inputs, device=device, generator=generator) * 0.02
    first = quantize_linear(get_scheme(scheme), weight)
    return [first] + [copy.deepcopy(first) for _ in range(math.ceil(ROTATED_BYTES / first.nbytes) - 1)]


def product_times_us(
    matrices: Sequence[PackedLinear],
    rows: int,
    repeats: int,
    chosen: Configuration | WarpGroups | None = None,
    warm_up_ms: float = 0.0,
) -> torch.Tensor:
    """Times in microseconds [repeats] of one product of `rows` random tokens, the matrices taken in turn."""
    device = next(matrices[0].buffers()).device
    x = torch.randn(rows, matrices[0].in_features, dtype=torch.float16, device=device)
    inputs = matrices[0].kernel_inputs(x)
    return replay_times_us(
        lambda turn: matrices[turn % len(matrices)].run_kernel(inputs, torch.float16, chosen),
        len(matrices),
        repeats,
        warm_up_ms,
    )


def replay_times_us(launch: Callable[[int], object], turns: int, repeats: int, warm_up_ms: float = 0.0) -> torch.Tensor:
    """Times in microseconds [repeats] of launch(turn), from replays of a CUDA graph that takes all turns in order,
    behind at least warm_up_ms of such replays."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def elapsed_us(run: Callable[[], object]) -> float:
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return 1e3 * start.elapsed_time(stop)

    launch(0)
    rounds = max(1, round(GRAPH_US / max(elapsed_us(lambda: [launch(turn) for turn in range(turns)]), 1)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for turn in range(turns):
                launch(turn)
    warmed_up_us = elapsed_us(graph.replay)
    while warmed_up_us < 1e3 * warm_up_ms:
        warmed_up_us += elapsed_us(graph.replay)
    return torch.tensor([elapsed_us(graph.replay) for _ in range(repeats)]) / (rounds * turns)


def require_gpu(device: str) -> None:
    """Raises SpecquantError where kernels cannot run on `device`."""
    if triton is None or not torch.cuda.is_available() or torch.device(device).type != "cuda":
        raise SpecquantError(f"kernels are measured on an NVIDIA GPU with Triton, and {device} here is none")
