"""What all tests share: tests marked gpu need a GPU, and generated examples are the same in every run."""

import os

import hypothesis
import pytest

# Set before torch loads. Small matrices gain nothing from a second thread, and where other programs use the cores, threads
# that wait for each other make the tests twenty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("specquant", deadline=None, derandomize=True)
hypothesis.settings.load_profile("specquant")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needing_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
