"""Weight files with matrices in integers and scales: read as the fp16 matrices that they stand for."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from specquant.errors import SpecquantError
from specquant.models.checkpoint import as_integers, open_checkpoint
from specquant.models.loading import load_eagle_head, load_model


def write(directory, tensors):
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 64), (4, None), (4, 32)])
def test_each_number_is_off_by_half_a_step_at_most(tmp_path, bits, group):
    matrix = torch.randn(24, 192, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 24)[:, None]
    stored = as_integers("a.weight", matrix, bits, group)
    checkpoint = open_checkpoint(write(tmp_path / "model", stored))
    assert checkpoint.shapes == {"a.weight": (24, 192)}
    assert stored["a.weight"].nbytes == matrix.numel() * bits // 8
    read = checkpoint.read("a.weight")
    assert read.dtype == torch.float16
    groups = matrix.view(24, -1, group or 192)
    steps = groups.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (read.float().view_as(groups) - groups).abs()
    assert (error <= 0.5 * steps * 1.01 + 2e-3 * groups.abs()).all()  # fp16 rounds scales, and the result


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_come_back_as_they_were(tmp_path, bits):
    most = 2 ** (bits - 1) - 1
    integers = torch.randint(-most, most + 1, (16, 64), generator=torch.Generator().manual_seed(0)).float()
    integers[:, 0] = most
    read = open_checkpoint(write(tmp_path / "model", as_integers("a", integers / 4, bits, 64))).read("a")
    assert torch.equal(read.float(), integers / 4)


def test_a_matrix_of_zeros_stays_zeros(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "model", as_integers("a", torch.zeros(4, 8), 4)))
    assert torch.equal(checkpoint.read("a"), torch.zeros(4, 8, dtype=torch.float16))


def test_a_head_in_integers_loads_as_any_head(small_models, tmp_path):
    model = load_model(small_models / "target")
    directory = shutil.copytree(small_models / "eagle-target", tmp_path / "head")
    tensors = load_file(directory / "model.safetensors")
    stored = {}
    for name, tensor in tensors.items():
        stored |= as_integers(name, tensor, 8, 64) if tensor.dim() == 2 else {name: tensor}
    write(directory, stored)
    head, exact = load_eagle_head(directory, model), load_eagle_head(small_models / "eagle-target", model)
    for (name, one), other in zip(head.named_parameters(), exact.parameters(), strict=True):
        assert (one - other).abs().max() <= 0.006 * other.abs().max(), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a:int4_scale": torch.ones(4, 3)}, "a:int4_scale fits no matrix: copy the directory again"),
        ({"a:int4_scale": torch.ones(5, 2)}, "a:int4_scale fits no matrix"),
        ({"a:int4_scale": torch.ones(4)}, "a:int4_scale fits no matrix"),
        ({"a": torch.ones(4, dtype=torch.uint8)}, "a:int4_scale fits no matrix"),
        ({"b:int8_scale": torch.ones(4, 1)}, "b:int8_scale fits no matrix"),
        ({"a": torch.ones(4, 4)}, "a is torch.float32, no 4-bit integers: copy it again"),
    ],
)
def test_what_is_damaged_is_one_sentence(tmp_path, change, says):
    write(tmp_path / "model", as_integers("a", torch.ones(4, 8), 4, 4) | change)
    with pytest.raises(SpecquantError, match=says):
        open_checkpoint(tmp_path / "model").read("a")
