import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specquant.errors import SpecquantError
from specquant.kernels.int4 import pack_int4, pair_outputs, unpack_int4, unpair_outputs


@given(st.integers(1, 5), st.integers(1, 3), st.sampled_from([8, 16]), st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(tiles, groups, operand_bits, seed):
    codes = torch.randint(0, 16, (16 * tiles, 128 * groups), generator=torch.Generator().manual_seed(seed))
    packed = pack_int4(codes, operand_bits)
    assert packed.shape == (groups, tiles, 32, 32)
    assert packed.dtype == torch.uint8
    assert packed.is_contiguous()
    assert torch.equal(unpack_int4(packed, operand_bits).long(), codes)


@pytest.mark.parametrize(
    ("operand_bits", "bytes_of_a_word"),
    # The registers of one lane in PTX's figures of the A fragments of m64k16 (16 bits) and m64k32 (8 bits).
    [(16, [0, 8, 1, 9]), (8, [0, 1, 2, 3])],
)
def test_a_lane_finds_the_fragments_that_ptx_defines(operand_bits, bytes_of_a_word):
    row, column = torch.arange(32)[:, None], torch.arange(256)
    rows, columns = (unpacked_places(value, operand_bits) for value in (row.expand(32, 256), column.expand(32, 256)))
    for lane in range(32):
        group, position = divmod(lane, 4)
        assert rows[1, 1, lane, :, 0].unique() == 16 + group
        assert rows[1, 1, lane, :, 1].unique() == 16 + group + 8
        first = position * (32 // operand_bits)
        assert columns[1, 1, lane, :4, 0].tolist() == [128 + first + offset for offset in bytes_of_a_word]
        assert torch.equal(columns[1, 1, lane, :, 0], columns[1, 1, lane, :, 1])


def unpacked_places(values, operand_bits):
    """Where `pack_int4` puts values 0 to 255: [in / 128, out / 16, lane, byte, half]."""
    low, high = (pack_int4(part, operand_bits) for part in (values % 16, values // 16))
    return torch.stack((low % 16 + 16 * (high % 16), low // 16 + 16 * (high // 16)), dim=-1).int()


def test_pairs_are_eight_outputs_apart():
    values = torch.arange(2 * 32).reshape(2, 32)
    pairs = pair_outputs(values)
    assert pairs.shape == (2, 2, 8, 2)
    assert pairs[1, 1, 3].tolist() == [32 + 16 + 3, 32 + 16 + 8 + 3]
    assert torch.equal(unpair_outputs(pairs), values)


def test_a_matrix_whose_outputs_are_no_whole_tiles_is_refused():
    with pytest.raises(SpecquantError, match="its outputs must be a multiple of 16"):
        pack_int4(torch.zeros(8, 128, dtype=torch.uint8), 8)


@pytest.mark.parametrize("inputs", [64, 1, 200])
def test_inputs_that_are_no_whole_tiles_are_filled_up(inputs):
    codes = torch.randint(0, 16, (32, inputs), generator=torch.Generator().manual_seed(0))
    unpacked = unpack_int4(pack_int4(codes, 8), 8)
    assert torch.equal(unpacked[:, :inputs].long(), codes)
    assert unpacked.shape[1] == -(-inputs // 128) * 128
    assert not unpacked[:, inputs:].any()
