"""Which configuration of a product is the fastest? Tried alone, and in decoder layers."""

import itertools
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedConfig

from specquant.errors import SpecquantError
from specquant.files import require_writable, write_file
from specquant.kernels.launch import multiprocessors, triton
from specquant.kernels.products import (
    CONFIGURATIONS,
    GROUP,
    MOST_SPLITS,
    ROW_TILES,
    TABLE,
    Configuration,
    configuration,
    gpu_kind,
    known,
    read_tuned,
    shape_name,
    tuned,
    tuned_path,
    winners,
)
from specquant.kernels.warp_groups import FORMS, REGISTERS, SLAB, TILES, UNPACKED, WarpGroups
from specquant.measure.blocks import replay_times_us
from specquant.measure.kernels import ROTATED_BYTES, kernel_name, layers, product, synthetic_matrices
from specquant.measure.parameters import require_gpu
from specquant.models.graphs import MOST_ROWS, CapturedCache
from specquant.models.llama import Llama, LlamaLayer, causal_mask
from specquant.models.names import source_of
from specquant.models.synthetic import synthetic_config, synthetic_model
from specquant.progress import tqdm
from specquant.quant import PackedLinear, get_scheme
from specquant.quant.linear import Float16Linear

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
# Most stages of the kernel for Hopper, by rows of a tile; and slabs of each of its warp groups.
WARP_GROUP_STAGES = {8: (4, 8), 16: (4, 8), 32: (6,), 64: (6,)}
WARP_GROUPS = ((1, 1), (1, 1, 1), (1, 1, 1, 1), (2, 2), (2, 1, 1), (2, 2, 1), (2, 2, 2, 1))
MOST_GROUP_SPLITS = 8
SHARED_BYTES = 220_000  # of a multiprocessor, for the stages of a program
SHORTLIST = 6  # candidates that are tried in a layer
LAYER_NOISE = 1.005  # a layer's time often differs by so much from one capture to the next
REPEATS = 20
SETTLING_REPEATS = 100  # after matrices were made: until then the first times are up to 15% longer
LIKELIEST = (5, 2)  # ordinary candidates and warp groups that are tried where a user waits: compiling takes longest
LONGEST_S = 86_400
CONTEXT_LENGTH = 512  # of cached tokens, while layers are timed


class Tuned(NamedTuple):
    """What tuning a model brought: the file, all that was measured (as of `tune`), and how many shapes and tiles of
    rows it has left."""

    path: Path
    rows: pd.DataFrame
    left: int


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
    gpu, end, rows = torch.device(device), time.monotonic() + budget_s, list[dict]()
    table = winners()
    tables = table.setdefault(gpu_kind(gpu), {})
    tuned(_indexed(gpu)).clear()  # what this user tuned would hide the table from this process
    for model, scheme in itertools.product(models, schemes):
        if scheme == "fp16":
            continue  # cuBLAS chooses by itself
        for cell in _cells((shape for _, _, shape in layers([model])), gpu):
            found = _fastest_of(LayersAlone(model, scheme, gpu), scheme, cell, tables, gpu, end)
            if found is None:
                return pd.DataFrame(rows)
            rows += found[1]
            write_file(path, _text(table))
    return pd.DataFrame(rows)


def tune_here(model: str | Path, scheme: str, seconds: float, anew: bool = False, device: str = "cuda") -> Tuned:
    """Find fast configurations of a model's shapes on this card, and keep them for this user.

    Args:
        model: A directory, a GGUF file, a hub id, or a name in `models.names.SHAPES`; its weights are not read.
        scheme: How its linear layers are stored.
        seconds: After how long to stop. Large matrices come first; for each the likeliest few candidates are tried.
        anew: Also what this user has tuned before.
        device: The GPU.

    Returns:
        What it brought.

    Raises:
        SpecquantError: There is no GPU, no such model or scheme, or nothing to choose.
    """
    if not 0 < seconds <= LONGEST_S:
        raise SpecquantError(f"--seconds is {seconds:g}: give more than 0, and at most {LONGEST_S}")
    if get_scheme(scheme).weight_bits == 16:
        raise SpecquantError(f"{scheme} has nothing to tune, for cuBLAS chooses by itself: give another scheme")
    require_gpu(device)
    gpu, end, rows = _indexed(torch.device(device)), time.monotonic() + seconds, list[dict]()
    model = source_of(model)
    path, tables, kernel = tuned_path(gpu), tuned(gpu), kernel_name(scheme)
    require_writable(path, whole=True)
    cells = _cells(layer_shapes(synthetic_config(model), scheme), gpu)
    left = [cell for cell in cells if anew or not _is_tuned(tables, kernel, *cell)]
    if not left:
        return Tuned(path, pd.DataFrame(), 0)
    passes = LayersAlone(model, scheme, gpu)
    for count, cell in enumerate(tqdm(left, desc="tuning", unit="case", disable=None)):
        found = _fastest_of(passes, scheme, cell, tables, gpu, end, LIKELIEST)
        if found is None:
            return Tuned(path, pd.DataFrame(rows), len(left) - count)
        kept = read_tuned(path)  # another process may have tuned another model
        for choice in found[0]:
            _choose(kept, kernel, shape_name(*cell[0]), cell[1], choice)
        rows += found[1]
        write_file(path, _text(kept), by_several=True)
    return Tuned(path, pd.DataFrame(rows), 0)


def told(found: Tuned) -> list[str]:
    """What tuning brought, a line for each shape and tile, and what is left."""
    lines, about = list[str](), ["out_features", "in_features", "rows"]
    if len(found.rows):
        for (outputs, inputs, tile), tried in found.rows.dropna(subset="layer_us").groupby(about, sort=False):
            before, after = tried.layer_us[tried.before].iloc[0], tried.layer_us[tried.kept].iloc[0]
            lines.append(f"{outputs} x {inputs}, up to {tile} tokens: {after:.1f} us a layer, {before:.1f} before")
    elif not found.left:
        lines.append("all matrices were tuned on this card before: --anew does so again")
    if found.left:
        lines.append(f"the time was over before {found.left} others: the same command goes on with them")
    return [*lines, str(found.path)]


def layer_shapes(config: PreTrainedConfig, scheme: str) -> list[tuple[int, int]]:
    """Outputs and inputs of a layer's matrices."""
    with torch.device("meta"):
        layer = LlamaLayer(config, get_scheme(scheme))
    return [(each.out_features, each.in_features) for each in layer.modules() if isinstance(each, PackedLinear)]


def lacks_configurations(model: Llama) -> bool:
    """Whether a model on a GPU has a shape that was tuned neither by this user nor for the recorded table."""
    if model.device.type != "cuda" or triton is None:
        return False
    matrices = [each for each in model.modules() if isinstance(each, PackedLinear)]
    shapes = {(each.out_features, each.in_features) for each in matrices if not isinstance(each, Float16Linear)}
    kernel, kind = kernel_name(model.scheme.name), gpu_kind(model.device)
    return any(known(kernel, *shape, tile, kind, model.device) is None for shape in shapes for tile in CANDIDATES)


def _indexed(device: torch.device) -> torch.device:
    """The device as its tensors name it: with its number."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _cells(shapes: Iterable[tuple[int, int]], gpu: torch.device) -> list[tuple[tuple[int, int], int]]:
    """Each shape with each tile of rows, the largest matrices first; warp groups have more tiles than others."""
    tiles = TILES if gpu_kind(gpu).startswith("sm90") else CANDIDATES
    largest_first = sorted(dict.fromkeys(shapes), key=math.prod, reverse=True)
    return list(itertools.product(largest_first, tiles))


def _is_tuned(tables: dict, kernel: str, shape: tuple[int, int], tile: int) -> bool:
    """Whether a user's tables have a winner for this; where that of 8 rows is the ordinary kernel, it is that of 16."""
    of_kernels = (tables.get(name, {}).get(shape_name(*shape), {}) for name in (kernel, TABLE.format(kernel)))
    ordinary, groups = (set(tiles) for tiles in of_kernels)
    return str(max(tile, ROW_TILES[0])) in ordinary or str(tile) in groups


def _text(table: dict) -> str:
    """A table as its file has it: the numbers of a configuration in a line."""
    return re.sub(r"\[[^]]*\]", lambda numbers: " ".join(numbers[0].split()), json.dumps(table, indent=1)) + "\n"


def _fastest_of(
    passes: "LayersAlone",
    scheme: str,
    cell: tuple[tuple[int, int], int],
    tables: dict,
    gpu: torch.device,
    end: float,
    likeliest: tuple[int, int] | None = None,
) -> tuple[list[Configuration | WarpGroups], list[dict]] | None:
    """Find the winners of a shape and tile of rows, and put them into `tables`; returns them, the one for row
    invariance and bf16 first, and what was measured; None where the time is over. likeliest: as for `_tried`."""
    ((outputs, inputs), tile), kernel, shape = cell, kernel_name(scheme), shape_name(*cell[0])
    matrices = synthetic_matrices(scheme, outputs, inputs, gpu.type)
    product_times_us(matrices, tile, SETTLING_REPEATS)
    now = configuration(kernel, outputs, inputs, tile, gpu)
    groups = known(kernel, outputs, inputs, tile, gpu_kind(gpu), gpu, groups=True)
    used = WarpGroups(tuple(groups[:-2]), *groups[-2:]) if groups else now
    alone: dict[Configuration | WarpGroups, float] = {}
    for candidate in dict.fromkeys([used, *_tried(kernel, cell, gpu, now, likeliest)]):
        if time.monotonic() > end:
            return None
        with suppress(triton.OutOfResources):
            alone[candidate] = product_times_us(matrices, tile, 5, candidate).median().item()
    del matrices
    # `known` takes what a user tuned for 8 rows only where the ordinary kernel's winner for 16 is this user's, too.
    ordinary_ones, rows = tables.setdefault(kernel, {}).setdefault(shape, {}), str(max(tile, ROW_TILES[0]))
    lacked = rows not in ordinary_ones
    ordinary_ones.setdefault(rows, list(now))
    in_layer = dict[Configuration | WarpGroups, float]()
    for candidate in dict.fromkeys([now, used, *sorted(alone, key=alone.__getitem__)[:SHORTLIST]]):
        _choose(tables, kernel, shape, tile, candidate)
        in_layer[candidate] = passes.time_us(tile)
    if lacked and tile not in ROW_TILES:
        del ordinary_ones[rows]  # it was not tuned
    # Both kernels of W4A16 have their winner: row invariance and bf16 need the ordinary one.
    ordinary = {each: time_us for each, time_us in in_layer.items() if isinstance(each, Configuration)}
    winners_here = [_fastest(choice, alone) for choice in (ordinary, in_layer)]
    for winner in winners_here:
        _choose(tables, kernel, shape, tile, winner)
    about: dict[str, Any] = {"scheme": scheme, "out_features": outputs, "in_features": inputs, "rows": tile}
    measured = list[dict]()
    for candidate in dict.fromkeys([*alone, *in_layer]):
        times = {"alone_us": alone.get(candidate), "layer_us": in_layer.get(candidate)}
        times |= {"before": candidate == used, "kept": candidate == winners_here[-1]}
        measured.append(about | _columns(candidate) | times)
    return winners_here, measured


def _tried(
    kernel: str,
    cell: tuple[tuple[int, int], int],
    gpu: torch.device,
    now: Configuration,
    likeliest: tuple[int, int] | None,
) -> list[Configuration | WarpGroups]:
    """What is tried alone: the configuration as it is first, then candidates; all, or the likeliest so many ordinary
    ones and warp groups."""
    shape, tile = cell
    tried = list(dict.fromkeys([now, *candidates(*shape, tile, gpu)]))
    groups = list[WarpGroups]()
    if kernel in FORMS and gpu_kind(gpu).startswith("sm90") and shape[0] % SLAB == 0 and shape[1] % 16 == 0:
        groups += warp_group_candidates(kernel, *shape, tile, gpu)
    if likeliest is None:
        return [*tried, *groups]
    tried.sort(key=lambda each: _unlike(each, now))
    groups.sort(key=lambda each: -math.ceil(shape[0] / (SLAB * sum(each.slabs))) * each.splits)  # most programs first
    return [*tried[: likeliest[0]], *groups[: likeliest[1]]]


def _unlike(candidate: Configuration, now: Configuration) -> float:
    """How far a candidate is from what is used now: the farther, the less likely it is faster."""
    others = sum(a != b for a, b in zip(candidate[2:], now[2:], strict=True)) / 4
    return abs(math.log(candidate.splits / now.splits)) + (candidate.outputs != now.outputs) + others


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
        groups = tables.setdefault(TABLE.format(kernel), {}).setdefault(shape, {})
        groups[str(tile)] = [*chosen.slabs, chosen.splits, chosen.stages]
    else:
        tables.get(TABLE.format(kernel), {}).get(shape, {}).pop(str(tile), None)
        if tile in ROW_TILES:  # else the ordinary kernel takes more rows, with their configuration
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

    def __init__(self, model: str | Path, scheme: str, device: torch.device):
        config = copy(synthetic_config(model))
        numbers = sum(outputs * inputs for outputs, inputs in layer_shapes(config, scheme))
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
        times = replay_times_us(lambda _: self.model(tokens, tokens, self.cache, mask), 1, repeats)
        return times.median().item() / self.model.config.num_hidden_layers


def candidates(outputs: int, inputs: int, tile: int, device: torch.device) -> Iterator[Configuration]:
    """Configurations worth measuring for a shape [out, in] and a tile of rows."""
    for block, stages, warps, registers in CANDIDATES.get(tile, ()):
        # From one and a half to five programs of four warps for each multiprocessor.
        programs = math.ceil(outputs / block) * warps / 4 / multiprocessors(device)
        wanted = {max(1, round(share / programs)) for share in (1.5, 2, 3, 4, 5)}
        for splits in sorted(wanted):
            if splits <= min(MOST_SPLITS, inputs // GROUP // 4):
                yield Configuration(block, splits, stages, warps, registers)


def warp_group_candidates(
    form: str, outputs: int, inputs: int, tile: int, device: torch.device
) -> Iterator[WarpGroups]:
    """Ways to cut up a product for Hopper: one program on each of most of the multiprocessors."""
    available, steps = multiprocessors(device), -(-inputs // GROUP)
    codes_bytes, x_bytes = SLAB * GROUP // (1 if form in UNPACKED else 2), tile * GROUP * (2 if form == "w4a16" else 1)
    found = dict[WarpGroups, None]()
    for slabs, splits in itertools.product(WARP_GROUPS, range(1, MOST_GROUP_SPLITS + 1)):
        programs = math.ceil(outputs / (SLAB * sum(slabs))) * splits
        for most in WARP_GROUP_STAGES[tile]:
            stages = min(most, SHARED_BYTES // (sum(slabs) * codes_bytes + x_bytes))
            if 0.7 * available <= programs <= available and splits <= steps // min(stages, 4):
                found[WarpGroups(slabs, splits, min(stages, steps // splits))] = None
    yield from found
