"""Two 4-bit codes in a byte."""

import torch


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Integer codes 0 to 15 [rows, columns], columns even -> uint8 [rows, columns / 2], even columns in low halves."""
    codes = codes.to(torch.uint8)
    return codes[:, 0::2] | codes[:, 1::2] << 4


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_int4`: uint8 [rows, columns / 2] -> uint8 [rows, columns]."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)
