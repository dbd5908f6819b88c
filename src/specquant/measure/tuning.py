"""Which configuration of a product is the fastest? Tried alone, and in decoder layers."""

import itertools
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd
import torch

from specquant.files import write_file
from specquant.kernels.launch import multiprocessors, triton
from specquant.kernels.products import CONFIGURATIONS, GROUP, Configuration, configuration, gpu_kind, winners
from specquant.kernels.w4a16_hopper import REGISTERS, SLAB, TABLE, WarpGroups
from specquant.measure.blocks import replay_times_us
from specquant.measure.kernels import ROTATED_BYTES, kernel_name, layers, product, synthetic_matrices
from specquant.measure.parameters import require_gpu
from specquant.models.graphs import MOST_ROWS, CapturedCache
from specquant.models.llama import causal_mask
from specquant.models.synthetic import synthetic_config, synthetic_model
from specquant.quant import PackedLinear, get_scheme

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
REPEATS = 20
SETTLING_REPEATS = 100  # after matrices were made: until then the first times are up to 15% longer
CONTEXT_LENGTH = 512  # of cached tokens, while layers are timed


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
    gpu = torch.device(device)
    table, rows = winners(), list[dict]()
    end = time.monotonic() + budget_s
    for model in models:
        largest_first = sorted((shape for _, _, shape in layers([model])), key=math.prod, reverse=True)
        for scheme in schemes:
            if scheme == "fp16":
                continue  # cuBLAS chooses by itself
            kernel = kernel_name(scheme)
            tables = table.setdefault(gpu_kind(gpu), {})
            passes = LayersAlone(model, scheme, gpu)
            for (outputs, inputs), tile in itertools.product(largest_first, CANDIDATES):
                matrices = synthetic_matrices(scheme, outputs, inputs, device)
                product_times_us(matrices, tile, SETTLING_REPEATS)
                alone: dict[Configuration | WarpGroups, float] = {}
                now: Configuration | WarpGroups = configuration(kernel, outputs, inputs, tile, gpu)
                tried = [now, *candidates(outputs, inputs, tile, gpu)]
                if kernel == "w4a16" and gpu_kind(gpu) == "sm90" and tile in WARP_GROUP_TILES:
                    tried += warp_group_candidates(outputs, inputs, tile, gpu)
                for candidate in dict.fromkeys(tried):
                    if time.monotonic() > end:
                        return pd.DataFrame(rows)
                    with suppress(triton.OutOfResources):
                        alone[candidate] = product_times_us(matrices, tile, 5, candidate).median().item()
                del matrices
                shape, in_layer = f"{outputs}x{inputs}", {}
                for candidate in dict.fromkeys([now, *sorted(alone, key=alone.__getitem__)[:SHORTLIST]]):
                    _choose(tables, kernel, shape, tile, candidate)
                    in_layer[candidate] = passes.time_us(tile)
                # Both kernels of W4A16 have their winner: row invariance and bf16 need the ordinary one.
                ordinary = {each: time_us for each, time_us in in_layer.items() if isinstance(each, Configuration)}
                for choice in (ordinary, in_layer):
                    _choose(tables, kernel, shape, tile, _fastest(choice, alone))
                about: dict[str, Any] = {"scheme": scheme, "out_features": outputs, "in_features": inputs, "rows": tile}
                for candidate in dict.fromkeys([*alone, *in_layer]):
                    times = {"alone_us": alone.get(candidate), "layer_us": in_layer.get(candidate)}
                    rows.append(about | _columns(candidate) | times)
                text = json.dumps(table, indent=1)
                write_file(path, re.sub(r"\[[^]]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")
    return pd.DataFrame(rows)


def product_times_us(
    matrices: Sequence[PackedLinear], rows: int, repeats: int, chosen: Configuration | WarpGroups | None = None
) -> torch.Tensor:
    """Times in microseconds [repeats] of one product of `rows` random tokens, the matrices taken in turn."""
    return replay_times_us(product(matrices, rows, chosen), len(matrices), repeats)


def _fastest(in_layer: dict, alone: dict) -> Configuration | WarpGroups:
    """The fastest alone of those whose times in a layer cannot be told apart."""
    close = LAYER_NOISE * min(in_layer.values())
    return min((each for each, time_us in in_layer.items() if time_us <= close), key=alone.__getitem__)


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
        numbers = sum(outputs * inputs for _, _, (outputs, inputs) in layers([model]))
        layer_bytes = numbers * get_scheme(scheme).weight_bits / 8
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
