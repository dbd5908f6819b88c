import torch
from hypothesis import given
from hypothesis import strategies as st

from specquant.kernels.int4 import pack_int4, unpack_int4


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(rows, pairs, seed):
    codes = torch.randint(0, 16, (rows, 2 * pairs), generator=torch.Generator().manual_seed(seed))
    packed = pack_int4(codes)
    assert packed.shape == (rows, pairs)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_int4(packed).long(), codes)


def test_the_even_column_is_the_low_half():
    assert pack_int4(torch.tensor([[0x3, 0xA]])).tolist() == [[0xA3]]
