"""One class per storage format: what is stored, how it comes from a range of values, and which kernel multiplies it."""

import torch
from torch import nn

from specquant.kernels.activations import SMALLEST, compute_dtype, quantize_per_token_triton
from specquant.kernels.fp8 import LARGEST, fp8_product, fp8_triton
from specquant.kernels.fp16 import fp16_product, fp16_triton
from specquant.kernels.int4 import pack_int4, packed_shape, pair_outputs, unpack_int4, unpair_outputs
from specquant.kernels.launch import on_gpu
from specquant.kernels.products import Configuration
from specquant.kernels.w4a8 import qoq_group_weight, qoq_weight, qqq_group_weight, qqq_weight, w4a8_triton
from specquant.kernels.w4a8_fp8 import pack_codes, unpack_codes, w4a8_fp8_product, w4a8_fp8_triton, w4a8_fp8_weight
from specquant.kernels.w4a16 import w4a16_product, w4a16_triton, w4a16_weight
from specquant.kernels.w4a16_asym import w4a16_asym_triton, w4a16_asym_weight
from specquant.kernels.w4a16_hopper import WarpGroups
from specquant.kernels.w8a8 import w8a8_product, w8a8_triton
from specquant.quant.grid import Grid, in_groups, out_of_groups

SMALLEST_FP16 = 2.0**-24


class PackedLinear(nn.Module):
    """One weight matrix [out, in] as its scheme stores it: buffers only, so that a state dict holds it.

    `bias` is None, or fp16 [out] beside the matrix, added to the product in every scheme.

    Storage is packed, in the order that the kernels read, and stays so (`nbytes`). Where there is no GPU, the reference
    products multiply an unpacked float copy, made at the first call and kept beside the storage, because a CPU has no
    4-bit arithmetic; it is not part of the state.
    """

    group_size = 0  # inputs that share a scale; 0: all
    operand_bits = 8  # that codes are widened to
    # That the kernel takes and gives; other inputs take the reference.
    kernel_dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)
    code_dtype: torch.dtype | None = torch.int8  # of x's codes, which the kernel multiplies; None: it multiplies x
    row_invariant = False  # whether a row's result may not depend on how many other rows there are
    zero_steps = False  # whether a group of zeros may have the step 0
    bias: torch.Tensor | None

    def __init__(self, out_features: int, in_features: int):
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.groups = -(-in_features // self.group_size) if self.group_size else 1
        for name, (dtype, shape) in self.layout().items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))
        self.register_buffer("bias", None)
        self._operand: torch.Tensor | None = None

    def layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What is stored: name -> dtype and shape."""
        raise NotImplementedError

    def pairs_shape(self, values: int) -> tuple[int, ...]:
        """The shape of `values` numbers for each pair of outputs of each group (`kernels.int4.pair_outputs`)."""
        return self.groups, self.out_features // 16, 8, values

    def fit(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Set scales (and zero points) for weights between low and high, both float32 [out, groups], low <= 0 <=
        high."""
        raise NotImplementedError

    def set_grid(self, unit: torch.Tensor | None, step: torch.Tensor | None, zero: torch.Tensor | None) -> None:
        """Store the grid whose values are unit * step * (code - zero): unit [out, 1], step and zero [out, groups].

        What the storage does not have is ignored. Scales are rounded to fp16.
        """
        raise NotImplementedError

    def grid(self) -> Grid:
        """The values that the stored scales allow."""
        raise NotImplementedError

    def takes_grid(self, unit: torch.Tensor | None, step: torch.Tensor | None, zero: torch.Tensor | None) -> bool:
        """Whether these, as for `set_grid`, are a grid: finite scales above 0, and zero points that are codes."""
        scales = [scale for scale in (unit, None if self.zero_steps else step) if scale is not None]
        return (
            all(bool((scale.isfinite() & (scale > 0)).all()) for scale in scales)
            and (step is None or bool((step.isfinite() & (step >= 0)).all()))
            and (zero is None or bool(((zero >= 0) & (zero <= 15)).all()))
        )

    def has_sound_grid(self) -> bool:
        """Whether what is stored, as of a checkpoint, is a grid (`takes_grid`)."""
        return self.takes_grid(*self.grid()[:3])

    def set_codes(self, codes: torch.Tensor) -> None:
        """Store codes [out, in]; packed, they may have more inputs, which are multiplied by zeros."""
        self.codes = pack_int4(codes, self.operand_bits)

    def integer_codes(self) -> torch.Tensor:
        """The stored codes [out, in]."""
        return unpack_int4(self.codes, self.operand_bits)[:, : self.in_features]

    def operand(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix [out, in] that the reference product takes, in `dtype`; more inputs, as packed, are cut off."""
        raise NotImplementedError

    def multiply(self, x: torch.Tensor, operand: torch.Tensor) -> torch.Tensor:
        """The product of x [rows, in] with `operand` and the scales."""
        raise NotImplementedError

    def kernel_inputs(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the kernel takes for x [rows, in]: x itself, or its codes and their scales."""
        return (x,) if self.code_dtype is None else quantize_per_token_triton(x, self.code_dtype)

    def run_kernel(
        self, inputs: tuple[torch.Tensor, ...], out_dtype: torch.dtype, chosen: Configuration | WarpGroups | None = None
    ) -> torch.Tensor:
        """The product on a GPU -> [rows, out] in `out_dtype`. `chosen`: as in `products.launch_product`."""
        raise NotImplementedError

    def operand_dtype(self, x: torch.Tensor) -> torch.dtype:
        return compute_dtype(x)

    def runs_kernel(self, x: torch.Tensor) -> bool:
        """Whether the product with such an x runs its kernel."""
        return on_gpu(x) and x.dtype in self.kernel_dtypes

    def takes_codes(self, x: torch.Tensor) -> bool:
        """Whether the product with such an x multiplies its codes, which the operation before may then make."""
        return self.code_dtype is not None and self.runs_kernel(x)

    def forward(
        self, x: torch.Tensor | tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """x [rows, in] -> [rows, out] in x's dtype; or codes of x and their scales, where `takes_codes`, -> [rows,
        out] in `dtype`."""
        y = self.product(x, dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def product(
        self, x: torch.Tensor | tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """What `forward` gives, without the bias."""
        if isinstance(x, tuple):
            assert dtype is not None, "codes do not say in which dtype their product is"
            return self.run_kernel(x, dtype)
        if self.runs_kernel(x):
            return self.run_kernel(self.kernel_inputs(x), x.dtype)
        dtype = self.operand_dtype(x)
        if self._operand is None or self._operand.dtype != dtype:
            self._operand = self.operand(dtype)[:, : self.in_features].contiguous()
        return self.multiply(x, self._operand)

    def dequantize(self) -> torch.Tensor:
        """The stored weights as float32 [out, in]."""
        codes = in_groups(self.integer_codes().float(), self.group_size)
        return out_of_groups(self.grid().at(..., None).decode(codes), self.in_features)

    @property
    def nbytes(self) -> int:
        """Bytes that are stored."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}, in_features={self.in_features}"

    def forget_operand(self) -> None:
        """Give up the unpacked copy; the next product makes it anew."""
        self._operand = None

    def _apply(self, function, recurse=True):
        self.forget_operand()
        return super()._apply(function, recurse)

    def _load_from_state_dict(self, *arguments, **keywords):
        self.forget_operand()
        super()._load_from_state_dict(*arguments, **keywords)


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
