import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from specquant.training.eagle import EagleHead, chain_accepted_lengths, head_loss, model_features
from specquant.training.sample import write_rows

SHAPE = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "vocab_size": 24,
    "initializer_range": 0.3,
}


@pytest.fixture
def head():
    torch.manual_seed(1)
    return EagleHead(LlamaConfig(**SHAPE, num_hidden_layers=1)).eval()


@pytest.fixture
def model():
    torch.manual_seed(2)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=2)).eval().requires_grad_(False)


def test_the_state_dict_has_the_published_names(head):
    projections = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    names = {
        "fc.weight",
        "fc.bias",
        *(f"layers.0.{name}.weight" for name in [*projections, "post_attention_layernorm"]),
    }
    assert set(head.state_dict()) == names
    assert head.fc.weight.shape == (32, 64)


@torch.no_grad()
def draft_step_by_step(head, embeddings, features, start, depth):
    """A chain that leaves the true features at `start`, one position at a time with a cache, as a decoder drafts."""
    cache, predicted = DynamicCache(), []
    for position in range(start + depth):
        inputs = features[:, position] if position <= start else predicted[-1]
        hidden = head.fc(torch.cat((embeddings[:, position], inputs), dim=-1))[:, None]
        rotary = head.rotary(hidden, torch.tensor([[position]]))
        hidden = head.layers[0](hidden, attention_mask=None, position_embeddings=rotary, past_key_values=cache)[:, 0]
        if position >= start:
            predicted.append(hidden)
    return predicted


def test_unrolling_equals_drafting_step_by_step(head):
    embeddings, features = torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    with torch.no_grad():
        unrolled = head.unroll(embeddings, features, depth=4)
    for start in range(6):
        for depth, expected in enumerate(draft_step_by_step(head, embeddings, features, start, depth=4)):
            torch.testing.assert_close(unrolled[depth][:, start + depth], expected, atol=1e-4, rtol=1e-4)


def test_a_perfect_head_has_only_the_entropy_as_loss(model, head, monkeypatch):
    rows = torch.randint(24, (2, 12))
    features = model_features(model, rows)
    monkeypatch.setattr(head, "unroll", lambda embeddings, inputs, depth: [features[:, 1:]] * depth)
    entropy = torch.distributions.Categorical(logits=model.lm_head(features[:, 1:])).entropy()
    assert head_loss(head, model, rows, depth=1).item() == pytest.approx(0.1 * entropy.mean().item(), rel=1e-5)


def test_accepted_lengths_are_those_of_decoding_with_chains(model, head):
    prompt_tokens, length, depth = 4, 40, 3
    rows = write_rows(model, torch.randint(24, (6, prompt_tokens)), length, torch.zeros(6), 0, "text")
    for _ in range(30):  # so that some drafts are right
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        head_loss(head, model, rows, depth).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = []
    for row in rows:
        root = prompt_tokens
        while root + depth < length:
            draft = []
            features = model_features(model, row[None])
            embeddings = model.model.embed_tokens(row[None, 1:])
            accepted = 0
            while accepted < depth:
                with torch.no_grad():
                    predicted = draft_step_by_step(head, embeddings, features, root - 1, accepted + 1)[-1]
                draft.append(model.lm_head(predicted).argmax().item())
                if draft[-1] != row[root + 1 + accepted]:
                    break
                accepted += 1
            expected.append(accepted + 1)
            root += accepted + 1
    lengths = chain_accepted_lengths(head, model, rows, prompt_tokens, end_id=-1, depth=depth)
    assert lengths.tolist() == expected
    assert len(set(expected)) > 1


def test_accepted_lengths_stop_at_the_end_of_the_document(model, head):
    rows = write_rows(model, torch.randint(24, (3, 4)), 40, torch.zeros(3), 0, "text")
    end = rows[0, 20].item()
    first_ends = [np.flatnonzero(row[4:] == end) for row in rows.numpy()]
    possible = sum((ends[0] + 1 if len(ends) else 36) for ends in first_ends)
    assert chain_accepted_lengths(head, model, rows, 4, end).sum() <= possible
