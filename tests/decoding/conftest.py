"""Small random models whose heads and small companions agree with them sometimes, so that every path is taken."""

from copy import copy

import pytest
import torch
from transformers import LlamaConfig

from specquant.decoding import Greedy, Speculator
from specquant.models.eagle import EagleHead
from specquant.models.eagle3 import Eagle3Config, Eagle3Head
from specquant.models.llama import Llama, set_compute_dtype


def random_model(vocab_size=37, hidden_size=128, layers=2, seed=0, scale=0.5, context_length=96) -> Llama:
    """A random Llama in float64: rounding never decides which token is likeliest."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=context_length,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = Llama(config)
    randomize(model, seed, scale)
    return set_compute_dtype(model, torch.float64)


def random_head(model: Llama, seed=1) -> EagleHead:
    head = EagleHead(model.config, model.embed_tokens, model.lm_head)
    shared = {id(model.embed_tokens.weight), id(model.lm_head.weight)}
    randomize(head, seed, 0.5, skip=shared)
    return set_compute_dtype(head, torch.float64)


def random_eagle3_head(model: Llama, draft_vocab_size: int, layers=(0, 1, 2), seed=1, **options) -> Eagle3Head:
    """A head that drafts every second token, and others, so many in all."""
    config = copy(model.config)
    config.num_hidden_layers = 1
    eagle3 = Eagle3Config(config, draft_vocab_size, config.hidden_size, **options)
    head = Eagle3Head(eagle3, model.embed_tokens, layers)
    randomize(head, seed, 0.5, skip={id(model.embed_tokens.weight)})
    if draft_vocab_size < config.vocab_size:
        order = [*range(0, config.vocab_size, 2), *range(1, config.vocab_size, 2)]
        head.vocabulary = torch.tensor(sorted(order[:draft_vocab_size]))
    return set_compute_dtype(head, torch.float64)


def randomize(module, seed, scale, skip=()):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        original = dict(module.named_parameters()).get(name)
        if original is not None and id(original) in skip:
            continue
        if tensor.dim() == 2:
            values = torch.randn(tensor.shape, generator=generator) * scale / tensor.shape[1] ** 0.5
            if "embed" in name or "lm_head" in name:
                values = torch.randn(tensor.shape, generator=generator) * scale
            tensor.copy_(values)
        elif name.endswith("bias"):  # which torch draws by its own generator
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)


def perturbed(model: Llama, amount: float, seed: int) -> Llama:
    """A copy with noise: it agrees with the model in some positions and not in others."""
    copy = Llama(model.config)
    copy.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for tensor in copy.state_dict().values():
        if tensor.dim() == 2:
            tensor += (torch.randn(tensor.shape, generator=generator) * amount * tensor.float().std()).to(tensor.dtype)
    return set_compute_dtype(copy, torch.float64)


def taken(speculator, prompt, count, rule=None):
    """The steps that decode so many tokens, the prompt's first."""
    steps = [speculator.prefill(prompt, rule or Greedy())]
    left = count - 1
    while left > 0:
        steps.append(speculator.step(left))
        left -= steps[-1].accepted_length
    return steps


def tokens_of(steps):
    return [token for step in steps for token in step.tokens]


def decode(speculator, prompt, count, rule=None):
    """The tokens."""
    return tokens_of(taken(speculator, prompt, count, rule))


def decode_with_lengths(speculator, prompt, count):
    """Tokens and accepted lengths of greedy decoding."""
    steps = taken(speculator, prompt, count)
    return tokens_of(steps), [step.accepted_length for step in steps[1:]]


def lossless_steps(speculator, prompt, count):
    """Decode so many tokens greedily, step by step: each takes one pass of the target, and all give its own tokens."""
    target, passes = speculator.model, []
    run, tokens = target.run, list(speculator.prefill(prompt, Greedy()).tokens)
    while len(tokens) < count:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, "run", lambda *inputs: passes.append(0) or run(*inputs))
            step = speculator.step(count - len(tokens))
        assert len(passes) == 1
        passes.clear()
        tokens += step.tokens
        yield step
    assert tokens == decode(Speculator(target), prompt, count)


@pytest.fixture(scope="session")
def target():
    return random_model()


@pytest.fixture(scope="session")
def intermediate(target):
    return perturbed(target, 0.05, seed=3)


@pytest.fixture(scope="session")
def smallest(target):
    return perturbed(target, 0.1, seed=4)


@pytest.fixture(scope="session")
def head(target):
    return random_head(target)
