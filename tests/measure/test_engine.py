"""The engine on a GPU, in fp16, against the reference on the CPU: the same tokens by every method in every scheme.

Rounding differs, so where the likeliest two tokens' logits are nearly equal, the other one may be chosen. Such places
are counted, and nothing else may differ.
"""

import pytest
import torch

from specquant.benchmarks.prompts import read_prompts
from specquant.decoding.drafters import PAPER_METHODS
from specquant.decoding.models import tiny_models
from specquant.files import project_root
from specquant.measure.throughput import decode_prompts, losslessness
from specquant.models.graphs import GraphedLlama
from specquant.models.loading import load_tokenizer
from specquant.models.targets import quantized_target
from specquant.quant import SCHEMES

TINY = project_root() / "data/tiny"
# By how much the two likeliest logits, which reach about 30, may differ where another token is chosen. Each layer
# rounds to 11 bits; and where activations are rounded to 8, a last bit that differs moves some of them by a step of
# int8, 1/127 of the largest, or of e4m3, 1/16 of themselves.
MARGINS = {16: 0.1, 8: 0.4}
E4M3_MARGIN = 0.8


def decode(scheme, keep_in, methods, max_new_tokens, device, per_task=1, exact=True, **options):
    target = quantized_target(TINY / "target", scheme, keep_in, "round-to-nearest")
    reference = tiny_models(TINY, target) if exact else None
    engine = tiny_models(TINY, target, dtype=torch.float16, device=device, **options)
    prompts = read_prompts("data/prompts/prompts.jsonl", per_task)
    tokenizer = load_tokenizer(target)
    rows = decode_prompts(
        engine, tokenizer, prompts, methods, "tiny", max_new_tokens=max_new_tokens, reference=reference
    )
    return engine, rows


def assert_only_near_ties_differ(scheme, rows):
    allowed = E4M3_MARGIN if SCHEMES[scheme].floating else MARGINS[SCHEMES[scheme].activation_bits]
    different = rows[rows.first_difference >= 0]
    assert (different.margin < allowed).all(), different.to_string()


def error(logits, exact):
    return float((logits.double() - exact).norm() / exact.norm())


def test_in_fp16_on_a_cpu_only_near_ties_differ(tmp_path):
    _, rows = decode("w8a8", tmp_path, ("autoregressive", "eagle2"), 8, "cpu")
    assert_only_near_ties_differ("w8a8", rows)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", SCHEMES)
def test_on_a_gpu_logits_are_as_near_as_a_cpu_s_in_fp16(scheme, tmp_path):
    """To those in float64, over all positions of the prompts."""
    target = quantized_target(TINY / "target", scheme, tmp_path, "round-to-nearest")
    tokenizer = load_tokenizer(target)
    texts = [prompt["prompt"] for prompt in read_prompts("data/prompts/prompts.jsonl", 1)]

    def logits(dtype, device):
        model = tiny_models(TINY, target, dtype=dtype, device=device).target
        rows = []
        for text in texts:
            tokens = torch.tensor(tokenizer(text)["input_ids"], device=device)
            rows.append(model.logits(model.prefill(tokens, model.new_cache(len(tokens)))).cpu())
        return torch.cat(rows)

    exact = logits(torch.float64, "cpu")
    assert error(logits(torch.float16, "cuda"), exact) < 1.25 * error(logits(torch.float16, "cpu"), exact) + 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", SCHEMES)
def test_on_a_gpu_only_near_ties_differ(scheme, tmp_path):
    engine, rows = decode(scheme, tmp_path, PAPER_METHODS, 48, "cuda", per_task=2)
    assert isinstance(engine.target, GraphedLlama)
    assert_only_near_ties_differ(scheme, rows)


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "w4a16-g128-asym"])
def test_row_invariant_methods_write_the_same_tokens(scheme, tmp_path):
    """As decoding one by one on the same GPU, with no exception."""
    _, rows = decode(scheme, tmp_path, PAPER_METHODS, 48, "cuda", per_task=2, exact=False, row_invariant=True)
    assert (losslessness(rows).differing_prompts == 0).all(), rows[rows.first_difference >= 0].to_string()
