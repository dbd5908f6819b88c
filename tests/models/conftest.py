"""Models and heads that tests write: the tiny target in our own storage, and heads as their authors publish them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from specquant.files import project_root
from specquant.models.quantize import quantize_model

TARGET = project_root() / "data/tiny/target"


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    """scheme -> the tiny target as we store it, rounded to nearest; made when it is asked for first."""
    directory = tmp_path_factory.mktemp("native")

    def quantized(scheme):
        if not (directory / scheme).is_dir():
            quantize_model(TARGET, scheme, directory / scheme, method="round-to-nearest", progress=False)
        return directory / scheme

    return quantized


@pytest.fixture
def write_head(tmp_path):
    """Writes a head's directory: its tensors, as safetensors or pickled, and the fields of its config.json."""

    def write(tensors, fields, pickled=False):
        directory = tmp_path / f"head-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(fields))
        if pickled:
            torch.save(tensors, directory / "pytorch_model.bin")
        else:
            save_file(tensors, directory / "model.safetensors")
        return directory

    return write
