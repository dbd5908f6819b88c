"""Lossless: on the trained models every method writes the tokens that the same scheme writes token by token.

In float64, where rounding never decides about a token: what is tested is the decoding, not a processor's arithmetic.
"""

import pytest
import torch

from specquant.benchmarks.prompts import read_prompts
from specquant.decoding.drafters import PAPER_METHODS
from specquant.decoding.models import tiny_models
from specquant.files import project_root
from specquant.measure.throughput import decode_prompts, losslessness
from specquant.models.loading import load_tokenizer
from specquant.models.targets import quantized_target
from specquant.quant import SCHEMES

TINY = project_root() / "data/tiny"


@pytest.fixture(scope="session")
def keep_in(tmp_path_factory):
    return tmp_path_factory.mktemp("targets")


def decode(scheme, keep_in, quantizer, prompts, max_new_tokens):
    target = quantized_target(TINY / "target", scheme, keep_in, quantizer)
    models = tiny_models(TINY, target, dtype=torch.float64)
    return decode_prompts(models, load_tokenizer(target), prompts, PAPER_METHODS, "tiny", max_new_tokens=max_new_tokens)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sample(scheme, keep_in):
    """Three prompts of 16 tokens; rounded to nearest, which is quick."""
    prompts = read_prompts("data/prompts/prompts.jsonl", per_task=1)[::3]
    rows = decode(scheme, keep_in, "round-to-nearest", prompts, 16)
    table = losslessness(rows)
    assert list(table.method) == list(PAPER_METHODS)
    assert (table.prompts == 3).all()
    assert (table.differing_prompts == 0).all(), rows[rows.first_difference >= 0].to_string()


@pytest.mark.full
@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_prompts(scheme, keep_in):
    """All prompts of ours, more than 50, and 64 tokens each; the target calibrated as in the notebooks."""
    prompts = read_prompts("data/prompts/prompts.jsonl")
    assert len(prompts) >= 50
    rows = decode(scheme, keep_in, "calibrated", prompts, 64)
    assert (losslessness(rows).differing_prompts == 0).all(), rows[rows.first_difference >= 0].to_string()
