"""A weight matrix as its scheme stores it: what all storage formats (`quant.linear`) have in common."""

import torch
from torch import nn

from specquant.kernels.activations import compute_dtype, quantize_per_token_triton
from specquant.kernels.int4 import pack_int4, unpack_int4
from specquant.kernels.launch import on_gpu
from specquant.kernels.products import ROW_TILES, Configuration
from specquant.kernels.warp_groups import WarpGroups, recorded
from specquant.quant.grid import Grid, in_groups, out_of_groups


class PackedLinear(nn.Module):
    """One weight matrix [out, in] as its scheme stores it: buffers only, so that a state dict holds it.

    `bias` is None, or fp16 [out] beside the matrix, added to the product in every scheme.

    Storage is packed, in the order that the kernels read, and stays so (`nbytes`). Where there is no GPU, the reference
    products multiply an unpacked float copy, made at the first call and kept beside the storage, because a CPU has no
    4-bit arithmetic; it is not part of the state.
    """

    form = ""  # of its kernel, in the table of configurations; empty: it has no kernel of ours
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
        if self.code_dtype is None:
            return (x,)
        return quantize_per_token_triton(x, self.code_dtype, self.starts_early(x))

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

    def starts_early(self, x: torch.Tensor) -> bool:
        """Whether the product with as many rows as x has, of its dtype, begins with weights before its input is there:
        it is then best launched before the operations in front of it have theirs. So it is by warp groups, and with few
        rows: else what is in front of it has many blocks."""
        few = len(x) <= ROW_TILES[0] and not self.row_invariant and x.dtype in self.kernel_dtypes
        return few and recorded(self.form, x, self.out_features, self.in_features) is not None

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
        rows = x[0] if isinstance(x, tuple) else x
        if not len(rows):  # nothing to multiply, and not every kernel takes so few
            return rows.new_empty(0, self.out_features, dtype=dtype or rows.dtype)
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
