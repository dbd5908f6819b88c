"""How fast are our products beside those that torch itself has for 4-bit and 8-bit weights?

The same matrices, by ours and by torch's: int4 in groups, fp8 with a scale per token and output, and fp16 (cuBLAS).
Activations are quantized before the clock starts.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from specquant.errors import SpecquantError
from specquant.kernels.fp8 import quantize_per_token_e4m3
from specquant.kernels.int4 import unpair_outputs
from specquant.measure.blocks import LaunchesInBlocks, launches_in_blocks
from specquant.measure.checks import require_draft_sizes
from specquant.measure.kernels import LAYERS, REFERENCE, layers, product, synthetic_matrices
from specquant.measure.measure import Measure, Measured
from specquant.quant import PackedLinear
from specquant.quant.linear import Float8Linear, Int4GroupLinear
from specquant.tables.schemas import TABLES

K_TILES = 8  # of 16 inputs, that torch packs together on a GPU
MOST_ERROR = 0.02  # of torch's products, over the same in float32: bfloat16 scales and results alone cost 0.003
OURS, INT4, FP8 = "specquant", "torch._weight_int4pack_mm", "torch._scaled_mm"
CUBLAS = "cuBLAS"


@dataclass(frozen=True)
class Parameters(LaunchesInBlocks):
    """What to time: products of every layer of some models of `measure.kernels.LAYERS`.

    Attributes:
        models: llama-3-8b, llama-3-70b, or both (the default).
        draft_sizes: Tokens in a product, with commas.
    """

    models: tuple[str, ...] = ("all",)
    draft_sizes: tuple[int, ...] = (1, 4, 8, 16, 30, 60)

    shared = ("draft_sizes", *LaunchesInBlocks.shared)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.models == ("all",):
            object.__setattr__(self, "models", tuple(LAYERS))

    def check(self) -> None:
        """Raises SpecquantError where there is no GPU, for unknown models, and for numbers out of range."""
        super().check()
        require_draft_sizes(self.draft_sizes)
        self.units()

    def units(self) -> list[dict[str, Any]]:
        ours, cublas = (REFERENCE, REFERENCE) if self.device == "cpu" else (OURS, CUBLAS)
        products = [("w4a16-g128", INT4), ("w4a16-g128", ours), ("fp8", FP8), ("fp8", ours), ("fp16", cublas)]
        return [
            {"model": model, "layer": layer, "scheme": scheme, "implementation": implementation}
            | {"weights": "synthetic", "process": process}
            for process in range(self.processes)
            for model, layer, _ in layers(self.models)
            for scheme, implementation in products
        ]


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Time the products of each unit in blocks, once torch's are seen to be those of the same matrices."""
    return parameters.each(units, lambda unit, order: time_products(parameters, unit, order))


def time_products(parameters: Parameters, unit: dict[str, Any], order: random.Random) -> pd.DataFrame:
    """A row for each block of products of so many tokens, copies of the matrix taken in turn.

    Raises SpecquantError where a product of torch is not that of the matrix.
    """
    outputs, inputs = LAYERS[unit["model"]][unit["layer"]]
    matrices = synthetic_matrices(unit["scheme"], outputs, inputs, parameters.device)
    make: Callable[..., Callable[[int], torch.Tensor]] = PRODUCTS.get(unit["implementation"], product)
    if make is not product:
        require_same_product(unit["implementation"], matrices[0], make)
    launches = {size: (make(matrices, size), len(matrices)) for size in parameters.draft_sizes}
    rows = launches_in_blocks(launches, torch.device(parameters.device), parameters.block, order)
    return rows.rename(columns={"what": "draft_size"}).assign(in_features=inputs, out_features=outputs)


def int4_of_torch(
    matrices: Sequence[Int4GroupLinear], rows: int, x: torch.Tensor | None = None
) -> Callable[[int], torch.Tensor]:
    """Launches of torch's product with W4A16 matrices, as `measure.kernels.product`.

    Torch decodes a code from 0 to 15 as (code - 8) * scale + zero, with both in bfloat16. That is ours where zero is 0.

    Args:
        matrices: W4A16 ones [out, in].
        rows: how many tokens.
        x: activations [rows, in]; random ones by default. They are rounded to bfloat16.

    Returns:
        A launch of the product [rows, out] in bfloat16 with the matrix whose turn it is.
    """
    x = _random(matrices, rows) if x is None else x
    x = x.to(torch.bfloat16)
    packed = []
    for matrix in matrices:
        codes, scales = matrix.integer_codes(), unpair_outputs(matrix.scales)
        grid = torch.stack([scales, torch.zeros_like(scales)], dim=-1).to(torch.bfloat16).contiguous()
        if codes.is_cuda:
            pairs = codes[:, ::2] << 4 | codes[:, 1::2]
            packed.append((torch._convert_weight_to_int4pack(pairs.contiguous(), K_TILES), grid))
        else:
            packed.append((torch._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1), grid))
    multiply = torch._weight_int4pack_mm if x.is_cuda else torch._weight_int4pack_mm_for_cpu
    return lambda turn: multiply(x, packed[turn][0], matrices[turn].group_size, packed[turn][1])


def fp8_of_torch(
    matrices: Sequence[Float8Linear], rows: int, x: torch.Tensor | None = None
) -> Callable[[int], torch.Tensor]:
    """Launches of torch's product of e4m3 matrices and activations, as `int4_of_torch`.

    Sums are kept in the tensor cores' own precision, as in ours.
    """
    x = _random(matrices, rows) if x is None else x
    codes, token_scales = quantize_per_token_e4m3(x)
    codes, token_scales = codes.to(torch.float8_e4m3fn), token_scales.float()
    operands = [(matrix.codes.t(), matrix.scales.float().reshape(1, -1)) for matrix in matrices]

    def launch(turn: int) -> torch.Tensor:
        weight, scales = operands[turn]
        return torch._scaled_mm(codes, weight, token_scales, scales, out_dtype=torch.bfloat16, use_fast_accum=True)

    return launch


def _random(matrices: Sequence[PackedLinear], rows: int) -> torch.Tensor:
    return torch.randn(rows, matrices[0].in_features, device=next(matrices[0].buffers()).device)


def require_same_product(name: str, matrix: PackedLinear, make: Callable[..., Callable[[int], torch.Tensor]]) -> None:
    """Raises SpecquantError where a product of torch, `make`, is not that of the matrix in float32."""
    x = _random([matrix], 3)
    found, exact = make([matrix], 3, x)(0).float(), matrix(x)  # of float32 it takes the reference
    error = ((found - exact).norm() / exact.norm()).item()
    if not error <= MOST_ERROR:
        raise SpecquantError(f"{name} gives another product than the matrix, by {error:.3f} of it: it is not timed")


PRODUCTS: dict[str, Callable[..., Callable[[int], torch.Tensor]]] = {INT4: int4_of_torch, FP8: fp8_of_torch}
MEASURE = Measure((TABLES["peers"],), Parameters, run, "replays of a CUDA graph, median of a block")
