"""How fast is a linear product? Each layer of a model alone, with weights that no cache holds, by draft size."""

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from specquant.errors import SpecquantError, unknown
from specquant.kernels.fp8 import multiplies_e4m3
from specquant.kernels.products import Configuration
from specquant.kernels.warp_groups import WarpGroups
from specquant.measure import ceilings, executors
from specquant.measure.blocks import LaunchesInBlocks, launches_in_blocks
from specquant.measure.checks import require_at_least, require_draft_sizes
from specquant.measure.measure import Measure, Measured, record
from specquant.measure.passes import DRAFT_SIZES
from specquant.models.device import gpu_is_available
from specquant.quant import PackedLinear, get_scheme, quantize_linear, scheme_names
from specquant.tables.schemas import TABLES
from specquant.tables.style import SCHEMES, along_draft_sizes, legend_above, mark, model_label, new_figure

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
REFERENCE = "reference"  # what runs on a CPU in place of a kernel
ROTATED_BYTES = 300e6  # weights are rotated through more than this, several times an L2 cache


@dataclass(frozen=True)
class Parameters(LaunchesInBlocks):
    """What to time: products of every layer of some models.

    Attributes:
        models: Whose shapes, of llama-3-8b and llama-3-70b, with commas.
        schemes: With commas; all: with those in FP8 where this machine's GPU multiplies it.
        draft_sizes: Tokens in a product, with commas (default: twelve from 1 to 64).
        row_invariant: Of the kernels that give a token the same bits in every draft.
        tune: Seconds to look for better configurations first, of the ordinary kernels.
    """

    models: tuple[str, ...] = ("all",)
    schemes: tuple[str, ...] = ("all",)
    draft_sizes: tuple[int, ...] = DRAFT_SIZES
    row_invariant: bool = False
    tune: float = 0.0

    shared = ("draft_sizes", *LaunchesInBlocks.shared)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.models == ("all",):
            object.__setattr__(self, "models", tuple(LAYERS))
        if self.schemes == ("all",):
            object.__setattr__(self, "schemes", bench_schemes())

    def check(self) -> None:
        """Raises SpecquantError where there is no GPU, for unknown models and schemes, and for numbers out of range."""
        super().check()
        require_draft_sizes(self.draft_sizes)
        require_at_least(self, tune=0)
        self.units()

    def implementation(self, scheme: str) -> str:
        if self.device == "cpu":
            return REFERENCE
        if self.row_invariant:
            return "specquant, row-invariant"
        return "cuBLAS" if scheme == "fp16" else "specquant"

    def units(self) -> list[dict[str, Any]]:
        return [
            {"model": model, "layer": layer, "scheme": scheme, "implementation": self.implementation(scheme)}
            | {"weights": "synthetic", "process": process}
            for process in range(self.processes)
            for model, layer, _ in layers(self.models)
            for scheme in self.schemes
        ]


def bench_schemes() -> tuple[str, ...]:
    """The schemes that are measured by default: those in FP8 where this machine's GPU multiplies it.

    Where jobs do the work, those in FP8 as well: which cards they get, this machine does not know.
    """
    elsewhere = executors.current().elsewhere and gpu_is_available()
    return BENCH_SCHEMES + (FP8_SCHEMES if elsewhere or multiplies_e4m3("cuda") else ())


def record_kernels(parameters: Parameters, out_dir: str | Path) -> list[Path]:
    """Measure the products, and on a card what it does at best beside the ordinary ones; returns the tables' paths."""
    parameters.check()
    if parameters.tune and not parameters.row_invariant:
        from specquant.measure.tuning import tune  # which measures by this module

        if executors.current().elsewhere:
            raise SpecquantError("--tune looks for configurations on this machine's card: leave --executor out")
        tune(parameters.models, parameters.schemes, parameters.tune)
    if parameters.row_invariant:
        return [record(MEASURE_ROW_INVARIANT, parameters, out_dir)]
    if parameters.device == "cpu":
        return [record(MEASURE, parameters, out_dir)]
    at_best = ceilings.Parameters(
        processes=parameters.processes,
        repeats=parameters.repeats,
        rest_over_run=parameters.rest_over_run,
        delay_ms=parameters.delay_ms,
        device=parameters.device,
    )
    return [record(MEASURE, parameters, out_dir), record(ceilings.MEASURE, at_best, out_dir)]


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Time the products of each unit in blocks."""
    return parameters.each(
        units, lambda unit, order: time_products(parameters, unit["model"], unit["layer"], unit["scheme"], order)
    )


def time_products(parameters: Parameters, model: str, layer: str, scheme: str, order: random.Random) -> pd.DataFrame:
    """A row for each block of products of so many tokens, the matrices taken in turn.

    Activations are quantized before; rotated activations, outputs and weights are random. bytes and operations are what
    the product cannot do without.
    """
    outputs, inputs = LAYERS[model][layer]
    matrices = synthetic_matrices(scheme, outputs, inputs, parameters.device)
    for matrix in matrices:
        matrix.row_invariant = parameters.row_invariant
    launches = {size: (product(matrices, size), len(matrices)) for size in parameters.draft_sizes}
    rows = launches_in_blocks(launches, torch.device(parameters.device), parameters.block, order)
    rows = rows.rename(columns={"what": "draft_size"})
    bytes_per_token = inputs * get_scheme(scheme).activation_bits // 8 + 2 * outputs
    return rows.assign(
        in_features=inputs,
        out_features=outputs,
        bytes=matrices[0].nbytes + rows["draft_size"] * bytes_per_token,
        operations=2 * rows["draft_size"] * inputs * outputs,
    )


def kernel_name(scheme: str) -> str:
    """The name that a scheme's product has in the table of configurations."""
    return "w4a16" if scheme.startswith("w4a16") else scheme


def layers(models: Iterable[str]) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Model, layer and shape [out, in] of every layer. Raises SpecquantError for an unknown model."""
    for model in models:
        if model not in LAYERS:
            raise unknown("model", model, LAYERS)
        for layer, shape in LAYERS[model].items():
            yield model, layer, shape


def synthetic_matrices(scheme: str, outputs: int, inputs: int, device: str) -> list[PackedLinear]:
    """As many quantized matrices [out, in] as `ROTATED_BYTES` hold: one of random numbers, and copies elsewhere."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(outputs, inputs, device=device, generator=generator) * 0.02
    first = quantize_linear(get_scheme(scheme), weight)
    return [first] + [copy.deepcopy(first) for _ in range(math.ceil(ROTATED_BYTES / first.nbytes) - 1)]


def product(
    matrices: Sequence[PackedLinear], rows: int, chosen: Configuration | WarpGroups | None = None
) -> Callable[[int], torch.Tensor]:
    """A launch of the product of `rows` random tokens with the matrix whose turn it is; on a CPU its reference.

    chosen: as for `PackedLinear.run_kernel`.
    """
    device = next(matrices[0].buffers()).device
    if device.type != "cuda":
        x = torch.randn(rows, matrices[0].in_features)
        return lambda turn: matrices[turn](x)
    x = torch.randn(rows, matrices[0].in_features, dtype=torch.float16, device=device)
    inputs = matrices[0].kernel_inputs(x)
    return lambda turn: matrices[turn].run_kernel(inputs, torch.float16, chosen)


def draw(frame: pd.DataFrame) -> Figure:
    """Time of one linear layer against the number of tokens, by implementation and scheme. `frame`: kernels.csv.

    A panel for each layer, in rows of four: those of one model beside each other.
    """
    keys = ["model", "layer", "in_features", "out_features"]
    groups = list(frame.groupby([key for key in keys if key in frame], sort=False))
    implementations = sorted(frame["implementation"].unique())
    columns = min(4, len(groups))
    rows_of_panels = -(-len(groups) // columns)
    height_in = 0.7 + 1.55 * rows_of_panels
    figure, axes = new_figure(rows_of_panels, columns, height_in, wide=columns > 1, sharex=True)
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    for place, (axis, (key, rows)) in enumerate(zip(axes, groups, strict=False)):
        for (scheme, implementation), line in rows.groupby(["scheme", "implementation"]):
            line = line.sort_values("draft_size")
            look = mark(scheme, SCHEMES)
            dashes = ("-", "--", ":", "-.")[implementations.index(implementation) % 4]
            label = f"{look.label}, {implementation}"
            axis.plot(line["draft_size"], line["time_us"], dashes, color=look.color, marker=look.marker, label=label)
        along_draft_sizes(axis)
        *model, layer, in_features, out_features = key
        named = "".join(f"{model_label(name)}, " for name in model)
        axis.set_title(f"{named}{layer},\n{in_features} to {out_features}")
        axis.set_ylim(0, 1.06 * rows["time_us"].max())
        if place % columns == 0:
            axis.set_ylabel("time (µs)")
    figure.supxlabel("tokens in one pass", fontsize=7)
    legend_above(figure, axes[0], columns=4 if columns > 1 else 1)
    return figure


MEASURE = Measure((TABLES["kernels"],), Parameters, run, "replays of a CUDA graph, median of a block")
MEASURE_ROW_INVARIANT = replace(MEASURE, tables=(replace(TABLES["kernels"], name="kernels_row_invariant"),))
