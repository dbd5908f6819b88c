"""Products in Triton's interpreter with a fixed order of summation.

The interpreter computes `tl.dot` by numpy's matmul, so by BLAS: on some processors that rounds a row differently with
the number of rows and its place among them. A GPU does not, and kernels that promise bits build on that.
"""

import numpy as np


def fixed_order_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [..., m, k] times b [..., k, n], for a k that is a power of two, as all of Triton's sizes are.

    Halves of the products are added until one is left: elementwise, so that no number depends on m, n or the processor.
    """
    products = np.swapaxes(a, -1, -2)[..., :, :, None] * b[..., :, None, :]  # [..., k, m, n]
    while (half := products.shape[-3] // 2) > 0:
        products = products[..., :half, :, :] + products[..., half:, :, :]
    return products[..., 0, :, :]


def fix_order_of_sums() -> None:
    """From now on let the interpreter's floating-point products sum in a fixed order; integer ones are exact anyway."""
    from triton.runtime import interpreter

    matmul = interpreter.InterpreterBuilder.create_dot

    def create_dot(builder, a, b, d, *options):
        if d.data.dtype.kind != "f":
            return matmul(builder, a, b, d, *options)
        wide_a, wide_b = (_widened(interpreter, operand, d.data.dtype) for operand in (a, b))
        return interpreter.TensorHandle(fixed_order_product(wide_a, wide_b) + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _widened(interpreter, operand, dtype: np.dtype) -> np.ndarray:
    """An operand's numbers in the sums' dtype, as the interpreter's own product takes them."""
    numbers = operand.data
    if operand.dtype.is_fp8():
        half = interpreter._convert_float(numbers, operand.dtype, interpreter.tl.float16, None)
        numbers = half.view(np.float16)
    return numbers.astype(dtype)
