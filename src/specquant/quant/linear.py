"""One class per storage format: what is stored, how it comes from a range of values, and which kernel multiplies it."""

import torch

from specquant.kernels.activations import SMALLEST
from specquant.kernels.fp8 import LARGEST, fp8_product, fp8_triton
from specquant.kernels.fp16 import fp16_product, fp16_triton
from specquant.kernels.int4 import packed_shape, pair_outputs, unpair_outputs
from specquant.kernels.w4a8 import qoq_group_weight, qoq_weight, qqq_group_weight, qqq_weight, w4a8_triton
from specquant.kernels.w4a8_fp8 import pack_codes, unpack_codes, w4a8_fp8_product, w4a8_fp8_triton, w4a8_fp8_weight
from specquant.kernels.w4a16 import w4a16_product, w4a16_triton, w4a16_weight
from specquant.kernels.w4a16_asym import w4a16_asym_triton, w4a16_asym_weight
from specquant.kernels.w8a8 import w8a8_product, w8a8_triton
from specquant.quant.grid import Grid, in_groups
from specquant.quant.packed import PackedLinear

SMALLEST_FP16 = 2.0**-24


class Float16Linear(PackedLinear):
    """fp16 weights; its kernel is cuBLAS's."""

    weight: torch.Tensor
    kernel_dtypes = (torch.float16,)
    code_dtype = None

    def has_sound_grid(self):
        return True

    def layout(self):
        return {"weight": (torch.float16, (self.out_features, self.in_features))}

    def operand(self, dtype):
        return self.weight.to(dtype)

    def run_kernel(self, inputs, out_dtype, chosen=None):
        (x,) = inputs
        if self.row_invariant:
            return fp16_triton(x, self.weight, row_invariant=True, chosen=chosen)
        return fp16_product(x, self.weight)

    def multiply(self, x, operand):
        return fp16_product(x, operand)

    def dequantize(self):
        return self.weight.float()


class Int8Linear(PackedLinear):
    """int8 weights with an fp16 scale per output channel; int8 activations (`kernels.w8a8`)."""

    form = "w8a8"

    def layout(self):
        return {
            "codes": (torch.int8, (self.out_features, self.in_features)),
            "scales": (torch.float16, (self.out_features,)),
        }

    def fit(self, low, high):
        self.set_grid(torch.maximum(-low, high) / 127, None, None)

    def set_grid(self, unit, step, zero):
        self.scales = _fp16_scale(unit[:, 0])

    def grid(self):
        return _grid(self.scales[:, None], lowest=-127, highest=127)

    def set_codes(self, codes):
        self.codes = codes.to(torch.int8)

    def integer_codes(self):
        return self.codes

    def operand(self, dtype):
        return self.codes.to(dtype)

    def run_kernel(self, inputs, out_dtype, chosen=None):
        x, token_scales = inputs
        return w8a8_triton(x, token_scales, self.codes, self.scales, out_dtype=out_dtype, chosen=chosen)

    def multiply(self, x, operand):
        return w8a8_product(x, operand, self.scales)


class Int4GroupLinear(PackedLinear):
    """4-bit codes with an fp16 scale per 128 inputs; fp16 activations (`kernels.w4a16`)."""

    form = "w4a16"
    group_size = 128
    operand_bits = 16
    code_dtype: torch.dtype | None = None

    def layout(self):
        return {
            "codes": (torch.uint8, packed_shape(self.out_features, self.in_features)),
            "scales": (torch.float16, self.pairs_shape(2)),
        }

    def fit(self, low, high):
        self.set_grid(None, _symmetric_step(low, high), None)

    def set_grid(self, unit, step, zero):
        self.scales = pair_outputs(_fp16_scale(step).t())

    def grid(self):
        return _grid(1, unpair_outputs(self.scales).t(), zero=8)

    def operand(self, dtype):
        return w4a16_weight(self.codes, self.scales, dtype)

    def run_kernel(self, inputs, out_dtype, chosen=None):
        (x,) = inputs
        return w4a16_triton(x, self.codes, self.scales, self.row_invariant, chosen)

    def multiply(self, x, operand):
        return w4a16_product(x, operand)


class AsymmetricInt4GroupLinear(Int4GroupLinear):
    """The same with a zero point, 0 to 15, per 128 inputs, as AWQ stores weights (`kernels.w4a16_asym`)."""

    def starts_early(self, x):
        return False  # torch's sums of x come first

    def layout(self):
        return super().layout() | {"zeros": (torch.uint8, self.pairs_shape(2))}

    def fit(self, low, high):
        steps = _fp16_scale((high - low) / 15)
        self.set_grid(None, steps, (-low / steps).round_().clamp_(0, 15))

    def set_grid(self, unit, step, zero):
        super().set_grid(unit, step, zero)
        self.zeros = pair_outputs(zero.to(torch.uint8).t())

    def grid(self):
        return _grid(1, unpair_outputs(self.scales).t(), zero=unpair_outputs(self.zeros).t())

    def operand(self, dtype):
        return w4a16_asym_weight(self.codes, self.scales, self.zeros, dtype)

    def run_kernel(self, inputs, out_dtype, chosen=None):
        (x,) = inputs
        return w4a16_asym_triton(x, self.codes, self.scales, self.zeros, self.row_invariant, chosen)


class Float8Linear(PackedLinear):
    """e4m3 weights with a float32 scale per output channel; e4m3 activations (`kernels.fp8`)."""

    form = "fp8"
    code_dtype = torch.float8_e4m3fn

    def layout(self):
        return {
            "codes": (torch.float8_e4m3fn, (self.out_features, self.in_features)),
            "scales": (torch.float32, (self.out_features,)),
        }

    def fit(self, low, high):
        self.set_grid(torch.maximum(-low, high) / LARGEST, None, None)

    def set_grid(self, unit, step, zero):
        self.scales = unit[:, 0].float().clamp_min(SMALLEST)

    def grid(self):
        return _grid(self.scales[:, None], lowest=-LARGEST, highest=LARGEST, e4m3=True)

    def set_codes(self, codes):
        self.codes = codes.to(torch.float8_e4m3fn)

    def integer_codes(self):
        return self.codes.float()

    def operand(self, dtype):
        return self.codes.to(dtype)

    def run_kernel(self, inputs, out_dtype, chosen=None):
        x, token_scales = inputs
        how = {"out_dtype": out_dtype, "row_invariant": self.row_invariant, "chosen": chosen}
        return fp8_triton(x, token_scales, self.codes, self.scales, **how)

    def multiply(self, x, operand):
        return fp8_product(x, operand, self.scales)


class Int4Float8Linear(Int4GroupLinear):
    """4-bit codes with an fp16 scale per 128 inputs, widened to e4m3; e4m3 activations (`kernels.w4a8_fp8`)."""

    form = "w4a8-fp8-g128"
    operand_bits = 8
    code_dtype = torch.float8_e4m3fn

    def layout(self):
        # Not "codes", which earlier versions stored otherwise: a model of theirs is refused.
        return {
            "signed_codes": (torch.uint8, packed_shape(self.out_features, self.in_features)),
            "scales": (torch.float16, self.pairs_shape(2)),
        }

    def set_codes(self, codes):
        self.signed_codes = pack_codes(codes)

    def integer_codes(self):
        return unpack_codes(self.signed_codes)[:, : self.in_features]

    def operand(self, dtype):
        return w4a8_fp8_weight(self.signed_codes, self.scales, dtype)

    def run_kernel(self, inputs, out_dtype, chosen=None):
        x, token_scales = inputs
        how = {"out_dtype": out_dtype, "row_invariant": self.row_invariant, "chosen": chosen}
        return w4a8_fp8_triton(x, token_scales, self.signed_codes, self.scales, **how)

    def multiply(self, x, operand):
        return w4a8_fp8_product(x, operand)


class QQQLinear(PackedLinear):
    """4-bit codes with an fp16 scale per output channel; int8 activations (`kernels.w4a8`)."""

    form = "w4a8-qqq"

    def layout(self):
        return {
            "codes": (torch.uint8, packed_shape(self.out_features, self.in_features)),
            "scales": (torch.float16, (self.out_features,)),
        }

    def fit(self, low, high):
        self.set_grid(_symmetric_step(low, high), None, None)

    def set_grid(self, unit, step, zero):
        self.scales = _fp16_scale(unit[:, 0])

    def grid(self):
        return _grid(self.scales[:, None], zero=8)

    def operand(self, dtype):
        return qqq_weight(self.codes, dtype)

    def run_kernel(self, inputs, out_dtype, chosen=None):
        x, token_scales = inputs
        return w4a8_triton("qqq", x, token_scales, self.codes, self.scales, out_dtype=out_dtype, chosen=chosen)

    def multiply(self, x, operand):
        return w8a8_product(x, operand, self.scales)


class QQQGroupLinear(PackedLinear):
    """4-bit codes with an fp16 scale per 128 inputs, requantized to int8 per output channel in the product; int8
    activations (`kernels.w4a8`). The channel's scale is such that no code can leave int8; in a checkpoint of others one
    may, and is `clamped`."""

    form = "w4a8-qqq-g128"
    group_size = 128
    zero_steps = True
    clamped = False

    def layout(self):
        return {
            "codes": (torch.uint8, packed_shape(self.out_features, self.in_features)),
            "scales": (torch.float16, (self.out_features,)),
            "group_scales": (torch.float16, self.pairs_shape(2)),
        }

    def fit(self, low, high):
        steps = _symmetric_step(low, high)
        scales = _fp16_scale(8 * steps.amax(dim=1, keepdim=True) / 127)
        self.set_grid(scales, (steps / scales).clamp_max_(127 / 8), None)

    def set_grid(self, unit, step, zero):
        self.scales = _fp16_scale(unit[:, 0])
        self.group_scales = pair_outputs(step.half().t())

    def grid(self):
        return _grid(self.scales[:, None], unpair_outputs(self.group_scales).t(), zero=8, integer=True)

    def set_codes(self, codes):
        super().set_codes(codes)
        integers = in_groups(codes.float() - 8, self.group_size).mul(self.grid().step[..., None]).round_()
        self.clamped = bool(integers.min() < -128) or bool(integers.max() > 127)

    def operand(self, dtype):
        return qqq_group_weight(self.codes, self.group_scales, dtype)

    def run_kernel(self, inputs, out_dtype, chosen=None):
        x, token_scales = inputs
        how = {"out_dtype": out_dtype, "chosen": chosen, "clamped": self.clamped}
        return w4a8_triton("qqq-g128", x, token_scales, self.codes, self.scales, self.group_scales, **how)

    def multiply(self, x, operand):
        return w8a8_product(x, operand, self.scales)


class QoQLinear(PackedLinear):
    """Unsigned 4-bit codes with an fp16 scale and a zero point per output channel; int8 activations
    (`kernels.w4a8`)."""

    form = "w4a8-qoq"

    def layout(self):
        return {
            "codes": (torch.uint8, packed_shape(self.out_features, self.in_features)),
            "scales": (torch.float16, (self.out_features,)),
            "zeros": (torch.uint8, (self.out_features,)),
        }

    def fit(self, low, high):
        scales = _fp16_scale((high - low) / 15)
        self.set_grid(scales, None, (-low / scales).round_().clamp_(0, 15))

    def set_grid(self, unit, step, zero):
        self.scales = _fp16_scale(unit[:, 0])
        self.zeros = zero[:, 0].to(torch.uint8)

    def grid(self):
        return _grid(self.scales[:, None], zero=self.zeros[:, None])

    def operand(self, dtype):
        return qoq_weight(self.codes, self.zeros, dtype)

    def run_kernel(self, inputs, out_dtype, chosen=None):
        x, token_scales = inputs
        how = {"out_dtype": out_dtype, "chosen": chosen}
        return w4a8_triton("qoq", x, token_scales, self.codes, self.scales, self.zeros, **how)

    def multiply(self, x, operand):
        return w8a8_product(x, operand, self.scales)


class QoQGroupLinear(PackedLinear):
    """Progressive: int8 per output channel within +-119, then unsigned 4-bit codes with an 8-bit scale and zero point
    per 128 inputs; int8 activations (`kernels.w4a8`). Codes that would leave +-127 at the first level are not used."""

    form = "w4a8-qoq-g128"
    group_size = 128
    protective_range = 119  # QServe, section 4.1: then the second level's rounding stays in int8

    def layout(self):
        return {
            "codes": (torch.uint8, packed_shape(self.out_features, self.in_features)),
            "scales": (torch.float16, (self.out_features,)),
            "group_grids": (torch.uint8, self.pairs_shape(4)),  # scales, then zero points
        }

    def fit(self, low, high):
        limit = self.protective_range
        scales = _fp16_scale(torch.maximum(-low, high).amax(dim=1, keepdim=True) / limit)
        low = (low / scales).round_().clamp_(-limit, 0)
        high = (high / scales).round_().clamp_(0, limit)
        steps = ((high - low) / 15).round_().clamp_(1, 16)
        self.set_grid(scales, steps, (-low / steps).round_().clamp_(0, 15))

    def set_grid(self, unit, step, zero):
        self.scales = _fp16_scale(unit[:, 0])
        self.group_grids = torch.cat([pair_outputs(values.to(torch.uint8).t()) for values in (step, zero)], dim=-1)

    def grid(self):
        steps, zeros = (unpair_outputs(values).t().float() for values in self.group_grids.chunk(2, dim=-1))
        reach = (127 / steps).floor_()
        return _grid(
            self.scales[:, None],
            steps,
            zeros,
            lowest=(zeros - reach).clamp_min_(0),
            highest=(zeros + reach).clamp_max_(15),
            integer=True,
        )

    def operand(self, dtype):
        return qoq_group_weight(self.codes, self.group_grids, dtype)

    def run_kernel(self, inputs, out_dtype, chosen=None):
        x, token_scales = inputs
        how = {"out_dtype": out_dtype, "chosen": chosen}
        return w4a8_triton("qoq-g128", x, token_scales, self.codes, self.scales, self.group_grids, **how)

    def multiply(self, x, operand):
        return w8a8_product(x, operand, self.scales)


STORAGE: dict[str, type[PackedLinear]] = {
    "fp16": Float16Linear,
    "w8a8": Int8Linear,
    "w4a16-g128": Int4GroupLinear,
    "w4a16-g128-rot": Int4GroupLinear,
    "w4a16-g128-asym": AsymmetricInt4GroupLinear,
    "w4a8-qqq": QQQLinear,
    "w4a8-qqq-g128": QQQGroupLinear,
    "w4a8-qoq": QoQLinear,
    "w4a8-qoq-g128": QoQGroupLinear,
    "fp8": Float8Linear,
    "w4a8-fp8-g128": Int4Float8Linear,
}


def _symmetric_step(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The step at which 16 values, -8 to 7, span a symmetric range (as GPTQ and QQQ define it: 15 steps)."""
    return torch.maximum(-low, high) * (2 / 15)


def _fp16_scale(scale: torch.Tensor) -> torch.Tensor:
    """A scale as it is stored: never zero, so that a row of zeros is no special case."""
    return scale.clamp(SMALLEST_FP16, torch.finfo(torch.float16).max).half()


def _grid(unit, step=1, zero=0, lowest=0, highest=15, integer=False, e4m3=False) -> Grid:
    """A Grid of numbers and tensors."""
    parts = (unit, step, zero, lowest, highest)
    device = next(part.device for part in parts if isinstance(part, torch.Tensor))
    tensors = (torch.as_tensor(part, dtype=torch.float32, device=device) for part in parts)
    unit, step, zero, lowest, highest = torch.broadcast_tensors(*tensors)
    return Grid(unit, step, zero, lowest, highest, integer, e4m3)
