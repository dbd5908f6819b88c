"""The tiny target in our own storage, which the tests write in the formats of others."""

import pytest

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
