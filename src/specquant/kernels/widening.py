"""4-bit codes widened in the registers of a warp group, where the tensor cores take them; in Gluon, for `warp_groups`.

A warp has a tile of 16 outputs of a slab of 64, a lane 32 bytes of its codes (see `int4`).
"""

from __future__ import annotations

from specquant.kernels.int4 import (
    LESS_EIGHT_TIMES_SIXTEEN,
    LESS_ZERO,
    LESS_ZERO_SCALED,
    SCALED,
    SCALED_AND_CLAMPED,
    TO_E4M3,
    WORD_TO_FP16,
)
from specquant.kernels.launch import constexpr

try:
    import triton.experimental.gluon.language as gl
    from triton.experimental import gluon

    jit = gluon.jit
except ImportError:  # no Triton, or one without Gluon

    def jit(function=None, **_):
        return function or jit


# Forms, by number: first those whose weights the tensor cores read from shared memory, last those with groups.
FORMS = "w8a8", "fp8", "w4a8-qqq", "w4a8-qoq", "w4a8-qqq-g128", "w4a8-qoq-g128", "w4a8-fp8-g128", "w4a16"
W8A8, FP8, QQQ, QOQ, QQQ_GROUP, QOQ_GROUP, FP8_GROUP, W4A16 = (constexpr(number) for number in range(len(FORMS)))
WIDEN = constexpr(f"{{{WORD_TO_FP16}}}")
# The codes of a word, times the scales of its outputs g ($5, twice) and g + 8 ($6).
WIDEN_SCALED = constexpr(f"""{{{WORD_TO_FP16}
    mul.rn.f16x2 $0, $0, $5;
    mul.rn.f16x2 $1, $1, $6;
    mul.rn.f16x2 $2, $2, $5;
    mul.rn.f16x2 $3, $3, $6;
}}""")
EIGHT, ZERO, ZERO_SCALED = constexpr(LESS_EIGHT_TIMES_SIXTEEN), constexpr(LESS_ZERO), constexpr(LESS_ZERO_SCALED)
EIGHT_SCALED, EIGHT_SCALED_CLAMPED = constexpr(SCALED), constexpr(SCALED_AND_CLAMPED)
E4M3 = constexpr(TO_E4M3)


@jit
def halves_of_inputs(codes):
    """[32, 32] of a slab -> twice [32, 4, 4]: the words of inputs 0 to 63, and of 64 to 127."""
    return gl.split(gl.permute(gl.reshape(codes, (32, 4, 2, 4)), (0, 1, 3, 2)))


@jit
def factors_of(pairs, codes):
    """Pairs of scales [32] -> for half of a slab's words [32, 4, 4] those of outputs g and of g + 8, each twice."""
    low, high = _both_halves(pairs)
    low, _ = gl.broadcast(gl.expand_dims(low, 1), codes)
    high, _ = gl.broadcast(gl.expand_dims(high, 1), codes)
    low, _ = halves_of_inputs(low)
    high, _ = halves_of_inputs(high)
    return low, high


@jit
def per_output(pairs, SUMS: constexpr):
    """Pairs of scales [32] -> float32 [64, 1], one for each output of a slab."""
    scale = gl.permute(gl.reshape(_halves(pairs), (4, 8, 2)), (0, 2, 1))
    scale = gl.convert_layout(gl.reshape(scale, (64,)), gl.SliceLayout(1, SUMS), assert_trivial=True)
    return gl.expand_dims(scale.to(gl.float32), 1)


@jit
def to_fp16(codes, factors, SUMS: constexpr):
    """Words [32, 4, 4] -> weights [64, 64], where the tensor cores want them; times what `factors_of` gives, if any."""
    pairs = gl.inline_asm_elementwise(
        WIDEN if len(factors) == 0 else WIDEN_SCALED,
        "=&r,=&r,=&r,=&r,r" if len(factors) == 0 else "=&r,=&r,=&r,=&r,r,r,r", (codes,) + factors,  # noqa: RUF005
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip
    weights = gl.join(gl.join(_halves(pairs[0]), _halves(pairs[1])), gl.join(_halves(pairs[2]), _halves(pairs[3])))
    # tile, lane / 4, lane % 4, word | input + 1, output + 8, input + 8
    weights = gl.permute(gl.reshape(weights, (4, 8, 4, 4, 2, 2, 2)), (0, 5, 1, 3, 6, 2, 4))
    return gl.convert_layout(gl.reshape(weights, (64, 64)), gl.DotOperandLayout(0, SUMS, 2), assert_trivial=True)


@jit
def zero_points(zeros, pair, out_features):
    """The zero points of outputs g and g + 8 of a tile, in two bytes of a word."""
    output = pair // 8 * 16 + pair % 8
    low = gl.load(zeros + output, mask=output < out_features, other=0).to(gl.int32)
    return low | gl.load(zeros + output + 8, mask=output < out_features, other=0).to(gl.int32) << 8


@jit
def to_bytes(codes, word, FORM: constexpr, CLAMPED: constexpr, SUMS: constexpr):
    """Codes in pairs, int8 [32, 128] -> weights [64, 128], already where the tensor cores want them.

    word: [32], what the outputs g and g + 8 have of their groups or channels.
    """
    if FORM == QQQ:
        low, high = gl.inline_asm_elementwise(
            EIGHT, "=&r,=&r,r", [codes], dtype=(gl.int8, gl.int8), is_pure=True, pack=4
        )
    elif FORM == QOQ:
        low_zero, high_zero = _like(word.to(gl.int8), codes), _like((word >> 8).to(gl.int8), codes)
        low, high = gl.inline_asm_elementwise(
            ZERO, "=&r,=&r,r,r,r", [codes, low_zero, high_zero], dtype=(gl.int8, gl.int8), is_pure=True, pack=4
        )
    elif FORM == QQQ_GROUP:
        low_scale = _like((word & 0xFFFF).to(gl.int16).to(gl.float16, bitcast=True), codes)
        high_scale = _like((word >> 16).to(gl.int16).to(gl.float16, bitcast=True), codes)
        low, high = gl.inline_asm_elementwise(
            EIGHT_SCALED_CLAMPED if CLAMPED else EIGHT_SCALED,
            "=&r,=&r,r,r,r,r,r", [codes, low_scale, high_scale], dtype=(gl.int8, gl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    elif FORM == QOQ_GROUP:
        low_scale, high_scale = word & 255, (word >> 8) & 255
        low_bias = (256 - ((word >> 16) & 255) * low_scale) * 0x10001
        high_bias = (256 - ((word >> 24) & 255) * high_scale) * 0x10001
        low, high = gl.inline_asm_elementwise(
            ZERO_SCALED, "=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r",
            [codes, _like(low_scale, codes), _like(high_scale, codes), _like(low_bias, codes), _like(high_bias, codes)],
            dtype=(gl.int8, gl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        low, high = gl.inline_asm_elementwise(
            E4M3, "=&r,=&r,r", [codes], dtype=(gl.int8, gl.int8), is_pure=True, pack=4
        )
        low, high = low.to(gl.float8e4nv, bitcast=True), high.to(gl.float8e4nv, bitcast=True)
    # output: tile, lane / 4; input: lane % 4, slab, + 16, byte; output: + 8
    weights = gl.permute(gl.reshape(gl.join(low, high), (4, 8, 4, 4, 2, 4, 2)), (0, 6, 1, 3, 4, 2, 5))
    return gl.convert_layout(gl.reshape(weights, (64, 128)), gl.DotOperandLayout(0, SUMS, 4), assert_trivial=True)


@jit
def _like(numbers, codes):
    """Numbers [32] -> for each byte of codes [32, 128]."""
    numbers, _ = gl.broadcast(gl.expand_dims(numbers, 1), codes)
    return numbers


@jit
def _halves(pair):
    low, high = (pair & 0xFFFF).to(gl.int16), (pair >> 16).to(gl.int16)
    return gl.join(low.to(gl.float16, bitcast=True), high.to(gl.float16, bitcast=True))


@jit
def _both_halves(pair):
    """A pair of 16-bit numbers -> the low one twice, the high one twice."""
    return gl.inline_asm_elementwise(
        "prmt.b32 $0, $2, $2, 0x1010; prmt.b32 $1, $2, $2, 0x3232;",
        "=&r,=&r,r", [pair], dtype=(gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip
