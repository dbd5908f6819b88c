"""What all tests share: tests marked gpu need a GPU, and generated examples are the same in every run."""

import hypothesis
import pytest

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
