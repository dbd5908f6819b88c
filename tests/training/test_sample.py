import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specquant.training.sample import NOT_GIVEN, write_rows


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        vocab_size=24,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def greedy_without_cache(model, ids, length):
    while ids.shape[1] < length:
        with torch.no_grad():
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    return ids


def test_greedy_rows_are_the_models_own(model):
    prompts = torch.tensor([[0, 5, 7], [0, 9, 2]])
    rows = write_rows(model, prompts, 20, torch.zeros(2), 0, "text")
    assert torch.equal(rows, greedy_without_cache(model, prompts, 20))


def test_prompts_of_different_lengths(model):
    prompts = torch.tensor([[0, 5, 7], [0, NOT_GIVEN, NOT_GIVEN]])
    rows = write_rows(model, prompts, 20, torch.zeros(2), 0, "text")
    assert torch.equal(rows[:1], greedy_without_cache(model, prompts[:1], 20))
    assert torch.equal(rows[1:], greedy_without_cache(model, torch.tensor([[0]]), 20))


def test_sampled_rows_follow_the_model_at_their_temperature(model):
    count = 20_000
    temperatures = torch.ones(2 * count)
    temperatures[count:] = 0.5
    rows = write_rows(model, torch.zeros(2 * count, 1, dtype=torch.long), 2, temperatures, 3, "text")
    with torch.no_grad():
        logits = model(torch.zeros(1, 1, dtype=torch.long)).logits[0, 0]
    for drawn, temperature in ((rows[:count, 1], 1.0), (rows[count:, 1], 0.5)):
        observed = torch.bincount(drawn, minlength=24) / count
        assert (observed - (logits / temperature).softmax(-1)).abs().max() < 0.015


def test_the_seed_decides(model):
    prompts, temperatures = torch.zeros(4, 1, dtype=torch.long), torch.ones(4)
    first = write_rows(model, prompts, 20, temperatures, 3, "text")
    assert torch.equal(first, write_rows(model, prompts, 20, temperatures, 3, "text"))
    assert not torch.equal(first, write_rows(model, prompts, 20, temperatures, 4, "text"))
