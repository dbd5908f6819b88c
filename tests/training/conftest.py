"""A target that writes text in a second, and what it wrote."""

import pytest
import torch

from specquant.training.conversations import turns_of
from specquant.training.transformer import load_trainable
from specquant.training.writing import Writing
from specquant.training.written import Written, write_text

CPU = torch.device("cpu")
WRITING = Writing(row_length=40, question_tokens=6, answer_tokens=8)


@pytest.fixture(scope="session")
def target(small_models):
    return load_trainable(small_models / "target", torch.float32, "cpu")


@pytest.fixture(scope="session")
def turns(small_models):
    from specquant.models.config import load_config
    from specquant.models.loading import load_tokenizer

    return turns_of(load_tokenizer(small_models / "target"), load_config(small_models / "target"))


@pytest.fixture(scope="session")
def written(target, turns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    write_text(folder, target, turns, WRITING, [], 0.001, {"model": "target"}, most_rows=16)
    return Written(folder, CPU)
