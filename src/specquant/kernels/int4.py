"""4-bit codes, two in a byte, in the order in which tensor cores take them.

A matrix [out, in] is cut into tiles of 16 outputs by 128 inputs, filled up to whole ones by inputs that products
multiply by zeros. A warp multiplies a tile, and each of its 32 lanes finds its share as 32 consecutive bytes: the
fragments of operand A that PTX's `mma` and `wgmma` define, for 16-bit operands (slabs of 16 inputs) or 8-bit ones
(slabs of 32). So weights are widened in the registers from which they are multiplied; in natural order they would have
to be shuffled through shared memory first. Tiles of the same inputs lie together.

The two outputs of a byte are 8 rows apart: lane 4 g + c holds outputs g (low half) and g + 8 (high half).
"""

import torch
import torch.nn.functional as F

from specquant.errors import SpecquantError

TILE_OUTPUTS, TILE_INPUTS = 16, 128

# Inline assembly (PTX): a word of eight codes, $4, becomes four registers of two fp16 numbers, code - 8, the fragment
# of a slab of 16 inputs. With a code in the lowest bits a number is 1024 + code; four bits higher, 1024 + 16 code.
WORD_TO_FP16 = """
    .reg .b32 high, sixteenth, bias;
    mov.b32 sixteenth, 0x2c002c00; mov.b32 bias, 0xd480d480; mov.b32 high, 0x64086408;
    lop3.b32 $0, $4, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 $1, $4, 0x00f000f0, 0x64006400, 0xea;
    sub.rn.f16x2 $0, $0, high;
    fma.rn.f16x2 $1, $1, sixteenth, bias;
    shr.u32 $3, $4, 8;
    lop3.b32 $2, $3, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 $3, $3, 0x00f000f0, 0x64006400, 0xea;
    sub.rn.f16x2 $2, $2, high;
    fma.rn.f16x2 $3, $3, sixteenth, bias;
"""

# Inline assembly (PTX) that widens four bytes of codes, $2, to the 8-bit weights of their low halves, $0, and of their
# high halves, $1. Numbers of each byte's group or channel follow, four for the low halves, then four for the high ones.
# 16 (code - 8): the code in a byte's high half, its highest bit turned.
LESS_EIGHT_TIMES_SIXTEEN = """{
    shl.b32 $0, $2, 4;
    lop3.b32 $0, $0, 0xf0f0f0f0, 0x80808080, 0x6a;
    lop3.b32 $1, $2, 0xf0f0f0f0, 0x80808080, 0x6a;
}"""
# code - zero: 128 is added before and turned off after, so that no byte borrows from the next. $3, $4: bytes of zeros.
LESS_ZERO = """{
    shr.u32 $1, $2, 4;
    lop3.b32 $0, $2, 0x0f0f0f0f, 0x80808080, 0xea;
    lop3.b32 $1, $1, 0x0f0f0f0f, 0x80808080, 0xea;
    sub.u32 $0, $0, $3;
    sub.u32 $1, $1, $4;
    xor.b32 $0, $0, 0x80808080;
    xor.b32 $1, $1, 0x80808080;
}"""
# (code - zero) * scale, two at a time in 16 bits: the low byte of code * scale + (256 - zero * scale). $3 to $10:
# scales, twice each in a word; $11 to $18: what is added.
LESS_ZERO_SCALED = """{
    .reg .b32 even, odd;
    and.b32 even, $2, 0x000f000f;
    shr.u32 odd, $2, 8; and.b32 odd, odd, 0x000f000f;
    mad.lo.u32 even, even, $3, $11;
    mad.lo.u32 odd, odd, $3, $11;
    prmt.b32 $0, even, odd, 0x6240;
    shr.u32 even, $2, 4; and.b32 even, even, 0x000f000f;
    shr.u32 odd, $2, 12; and.b32 odd, odd, 0x000f000f;
    mad.lo.u32 even, even, $7, $15;
    mad.lo.u32 odd, odd, $7, $15;
    prmt.b32 $1, even, odd, 0x6240;
}"""
# (code - 8) * scale, rounded half to even: fp16 rounds 1280 plus a number within +-127 to an integer whose lowest byte
# is that number's; clamped, to 1152 at least and 1407 at most. $3, $4: scales of the low halves; $5, $6: of the high.
_CLAMP = "max.f16x2 even, even, least; max.f16x2 odd, odd, least; min.f16x2 even, even, most; min.f16x2 odd, odd, most;"
_SCALED = """{{
    .reg .b32 even, odd, next, eight, sixteenth, bias, base, least, most;
    mov.b32 eight, 0x64086408; mov.b32 sixteenth, 0x2c002c00;
    mov.b32 bias, 0xd480d480; mov.b32 base, 0x65006500;
    mov.b32 least, 0x64806480; mov.b32 most, 0x657f657f;
    shr.u32 next, $2, 8;
    lop3.b32 even, $2, 0x000f000f, 0x64006400, 0xea;
    lop3.b32 odd, next, 0x000f000f, 0x64006400, 0xea;
    sub.rn.f16x2 even, even, eight;
    sub.rn.f16x2 odd, odd, eight;
    fma.rn.f16x2 even, even, $3, base;
    fma.rn.f16x2 odd, odd, $3, base;
    {clamp}
    prmt.b32 $0, even, odd, 0x6240;
    lop3.b32 even, $2, 0x00f000f0, 0x64006400, 0xea;
    lop3.b32 odd, next, 0x00f000f0, 0x64006400, 0xea;
    fma.rn.f16x2 even, even, sixteenth, bias;
    fma.rn.f16x2 odd, odd, sixteenth, bias;
    fma.rn.f16x2 even, even, $5, base;
    fma.rn.f16x2 odd, odd, $5, base;
    {clamp}
    prmt.b32 $1, even, odd, 0x6240;
}}"""
SCALED, SCALED_AND_CLAMPED = _SCALED.format(clamp=""), _SCALED.format(clamp=_CLAMP)
# (code - 8) / 512 as e4m3, of codes stored as `w4a8_fp8` says: the byte t up to 7, t + 121 from 8 on.
TO_E4M3 = """{
    .reg .b32 t, s;
    and.b32 t, $2, 0x0f0f0f0f;
    shr.u32 s, $2, 3;
    and.b32 s, s, 0x01010101;
    mad.lo.u32 $0, s, 121, t;
    shr.u32 t, $2, 4;
    and.b32 t, t, 0x0f0f0f0f;
    shr.u32 s, $2, 7;
    and.b32 s, s, 0x01010101;
    mad.lo.u32 $1, s, 121, t;
}"""


def packed_shape(out_features: int, in_features: int) -> tuple[int, int, int, int]:
    """The shape of a packed matrix [out, in]: [in / 128, rounded up, out / 16, 32 lanes, 32 bytes].

    Raises SpecquantError where its outputs are not made of whole tiles.
    """
    if out_features % TILE_OUTPUTS:
        raise SpecquantError(
            f"a {out_features} x {in_features} matrix cannot be stored in 4 bits: its outputs must be a multiple of "
            f"{TILE_OUTPUTS}"
        )
    return -(-in_features // TILE_INPUTS), out_features // TILE_OUTPUTS, 32, 32


def in_whole_tiles(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers [n, in] themselves, or, where the inputs are no whole tiles, with zeros behind them."""
    missing = -numbers.shape[1] % TILE_INPUTS
    if not missing:
        return numbers
    if numbers.dtype == torch.float8_e4m3fn:  # torch does not pad these; their zero is the byte zero
        return F.pad(numbers.view(torch.uint8), (0, missing)).view(numbers.dtype)
    return F.pad(numbers, (0, missing))


def pack_int4(codes: torch.Tensor, operand_bits: int) -> torch.Tensor:
    """Integer codes 0 to 15 [out, in] -> uint8 [in / 128, out / 16, 32, 32], for operands of 8 or 16 bits."""
    inputs, outputs, _, _ = shape = packed_shape(*codes.shape)
    tiles = in_whole_tiles(codes.to(torch.uint8)).reshape(outputs, 2, 8, inputs, TILE_INPUTS)
    tiles = tiles[..., _input_order(operand_bits, codes.device)]
    return (tiles[:, 0] | tiles[:, 1] << 4).permute(2, 0, 1, 3).reshape(shape)


def unpack_int4(packed: torch.Tensor, operand_bits: int) -> torch.Tensor:
    """The inverse of `pack_int4`: uint8 [in / 128, out / 16, 32, 32] -> uint8 [out, in], whole tiles of inputs."""
    inputs, outputs = packed.shape[:2]
    tiles = torch.stack((packed & 15, packed >> 4)).reshape(2, inputs, outputs, 8, TILE_INPUTS)
    tiles = tiles[..., _input_order(operand_bits, packed.device).argsort()]
    return tiles.permute(2, 0, 3, 1, 4).reshape(outputs * TILE_OUTPUTS, inputs * TILE_INPUTS)


def pair_outputs(values: torch.Tensor) -> torch.Tensor:
    """Values of groups [groups, out] in the order in which lanes need them: [groups, out / 16, 8, 2].

    The last dimension has the values for the low and the high halves of a lane's bytes.
    """
    return values.unflatten(1, (-1, 2, 8)).transpose(2, 3).contiguous()


def unpair_outputs(pairs: torch.Tensor) -> torch.Tensor:
    """The inverse of `pair_outputs`: [groups, out / 16, 8, 2] -> [groups, out]."""
    return pairs.transpose(2, 3).flatten(1)


def _input_order(operand_bits: int, device: torch.device) -> torch.Tensor:
    """The inputs of a tile [128], as the bytes of the four lanes that share an output name them one after the other."""
    lane = torch.arange(4, device=device)[:, None]
    byte = torch.arange(32, device=device)
    if operand_bits == 8:
        order = byte // 8 * 32 + byte // 4 % 2 * 16 + lane * 4 + byte % 4
    else:  # one 32-bit word widens to four registers of two values: even inputs lie in its low half, odd in its high
        order = byte // 4 * 16 + byte % 2 * 8 + lane * 2 + byte // 2 % 2
    return order.flatten()
