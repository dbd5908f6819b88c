"""What ships for SmolLM2 in data/smollm2: whole, small, and drafts with which every method writes the same text."""

import pytest
import torch

from specquant.benchmarks.chat import chat_prompt
from specquant.decoding import generate
from specquant.decoding.models import tiny_models
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models.checkpoint import _open_own, open_checkpoint
from specquant.models.hub import locate
from specquant.models.loading import load_head_config, load_tokenizer
from specquant.models.packaged import packaged_file
from specquant.models.targets import quantized_target
from specquant.quant import SCHEMES

DATA = project_root() / "data/smollm2"
METHODS = ("eagle2", "vanilla", "hierarchical")
QUESTION = "Name three primary colors, and say in one sentence each what they remind people of."


def test_all_of_it_is_small():
    assert sum(file.stat().st_size for file in DATA.rglob("*")) <= 20_000_000


@pytest.mark.parametrize("name", ["eagle-target", "eagle-intermediate"])
def test_heads_are_whole(name):
    config, checkpoint = load_head_config(DATA / name), open_checkpoint(DATA / name)
    assert checkpoint.shapes["fc.weight"] == (config.hidden_size, 2 * config.hidden_size)
    for tensor in checkpoint.shapes:
        assert checkpoint.read(tensor).isfinite().all(), tensor


def test_the_small_model_is_a_fifth_of_the_target_and_borrows_its_ends():
    names = set(_open_own(DATA / "intermediate").shapes)
    assert {name.split(".")[1] for name in names if name.startswith("layers.")} == set("012345")
    assert not {"embed_tokens.weight", "lm_head.weight"} & names


@pytest.fixture(scope="module")
def keep_in(tmp_path_factory):
    """Where quantized copies are made; skips where the model is not there and cannot be fetched."""
    try:
        packaged_file("smollm2")
    except SpecquantError as error:
        pytest.skip(str(error))
    return tmp_path_factory.mktemp("targets")


@pytest.mark.full
@pytest.mark.parametrize(("scheme", "new_tokens"), [(scheme, 48 if scheme == "fp16" else 16) for scheme in SCHEMES])
def test_every_method_writes_the_same_text(scheme, new_tokens, keep_in):
    """In float64, where what is nearly equally likely is told apart whatever is in one pass. Rounded to nearest, which
    is quick. `specquant bench throughput --models-dir data/smollm2` says the same of all prompts, calibrated."""
    target = quantized_target("smollm2", scheme, keep_in, "round-to-nearest")
    models = tiny_models(DATA, target, dtype=torch.float64, context_length=256)
    tokenizer = load_tokenizer(locate("smollm2"))
    prompt = chat_prompt(QUESTION, tokenizer)
    expected = generate(models.speculator("autoregressive"), tokenizer, prompt, new_tokens)
    for method in METHODS:
        text = generate(models.speculator(method), tokenizer, prompt, new_tokens)
        assert text.token_ids == expected.token_ids, method
        mean = sum(text.accepted_lengths) / len(text.accepted_lengths)
        least = 1.5 if scheme == "fp16" else 1.0  # the others have too few tokens, and lose some of their acceptance
        assert mean > least, (method, mean)  # drafts of an untrained head or model are hardly ever accepted
