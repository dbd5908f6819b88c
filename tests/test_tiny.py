"""The EAGLE-3 heads that ship for the tiny models: small, of their format, and drafts that are accepted."""

from statistics import fmean

import pytest
import torch

from specquant.benchmarks.prompts import prompt_ids, read_prompts
from specquant.decoding import generate
from specquant.decoding.models import tiny_models
from specquant.files import project_root
from specquant.models.checkpoint import open_checkpoint
from specquant.models.companions import COMPANIONS
from specquant.models.eagle3 import load_eagle3_config
from specquant.models.loading import load_tokenizer
from specquant.models.options import ModelOptions

TINY = project_root() / "data/tiny"
HEADS = {"eagle3-target": (384, (1, 2, 4)), "eagle3-intermediate": (256, (0, 1, 2))}  # width, and what they read


def test_they_are_small():
    """Commands that send the tree to another machine may not take more than 64 MiB."""
    assert sum(file.stat().st_size for name in HEADS for file in (TINY / name).iterdir()) < 4_500_000


@pytest.mark.parametrize("name", HEADS)
def test_they_are_whole(name):
    width, layers = HEADS[name]
    config, checkpoint = load_eagle3_config(TINY / name), open_checkpoint(TINY / name)
    assert (config.layer.hidden_size, config.draft_vocab_size, config.feature_layers) == (width, 2048, layers)
    assert checkpoint.shapes["fc.weight"] == (width, 3 * width)
    for tensor in checkpoint.shapes:
        assert checkpoint.read(tensor).isfinite().all(), tensor


def test_they_are_found_beside_their_target():
    found = ModelOptions(TINY / "target").companions
    assert found == {which: TINY / which.replace("_", "-") for which in COMPANIONS}


@pytest.fixture(scope="module")
def models():
    return tiny_models(TINY, dtype=torch.float64)


@pytest.mark.parametrize("method", ["eagle3", "hierarchical-eagle3"])
def test_every_token_is_the_targets_and_drafts_are_accepted(models, method):
    """Of the hierarchy, by the intermediate model: it would hand up as much with a head that is never right."""
    tokenizer, lengths = load_tokenizer(TINY / "target"), []
    for prompt in read_prompts("data/prompts/prompts.jsonl", 1)[::3]:
        tokens = prompt_ids(prompt["prompt"], tokenizer)
        expected = generate(models.speculator("autoregressive"), tokenizer, tokens, 32)
        found = generate(models.speculator(method), tokenizer, tokens, 32)
        assert found.token_ids == expected.token_ids
        inner = [length for step in found.steps for length in step.inner_accepted_lengths]
        lengths += found.accepted_lengths if method == "eagle3" else inner
    assert fmean(lengths) > 2  # heads that read features shifted by one reach 1.6 and 1.4
