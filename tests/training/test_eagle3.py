"""Training an EAGLE-3 head: what it computes is what decoding computes, it reads no token ahead, and it learns."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from specquant.decoding import EagleDrafter, Greedy, Speculator
from specquant.errors import SpecquantError
from specquant.models.llama import causal_mask
from specquant.models.loading import load_eagle3_head, load_model
from specquant.training import eagle3 as module
from specquant.training.eagle3 import (
    Eagle3Head,
    Eagle3Recipe,
    drafts_right,
    eagle3_loss,
    layers_to_read,
    model_streams,
    start_from_model,
    train_eagle3_head,
)
from specquant.training.fit import Schedule
from specquant.training.writing import Rows

DEPTH = 3
ROW = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Three small layers, and weights large enough that tokens decide about the next ones."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).half()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=1.0 if parameter.shape[0] == 40 else 0.2)
    model.directory = tmp_path_factory.mktemp("models") / "target"
    model.save_pretrained(model.directory)
    loaded = AutoModelForCausalLM.from_pretrained(model.directory, dtype=torch.float32).requires_grad_(False)
    loaded.directory = model.directory
    return loaded


def written(model, count, seed):
    """Rows that a model wrote greedily behind two random tokens, all of them its answer."""
    rows = torch.randint(2, 40, (count, 2), generator=torch.Generator().manual_seed(seed))
    while rows.shape[1] < ROW:
        rows = torch.cat((rows, model(rows).logits[:, -1:].argmax(-1)), dim=1)
    return Rows(rows, torch.ones_like(rows, dtype=torch.bool), torch.empty(count, ROW, 0))


class Text:
    """Rows in memory, as `Written` gives those of files."""

    device = torch.device("cpu")

    def __init__(self, rows, held_out):
        self.tokens, self.answers = (
            torch.cat((getattr(held_out, name), getattr(rows, name))) for name in ("tokens", "answers")
        )
        self.held_out = len(held_out.tokens)

    def rows(self, numbers):
        return Rows(self.tokens[numbers], self.answers[numbers], torch.empty(len(numbers), ROW, 0))

    def batch(self, step, count, seed):
        size = len(self.tokens) - self.held_out
        return self.rows(self.held_out + torch.arange(step * count, (step + 1) * count) % size)

    def held_out_batches(self, count):
        return map(self.rows, torch.arange(self.held_out).split(count))


@pytest.fixture
def head(model):
    torch.manual_seed(1)
    head = Eagle3Head(model.config, torch.arange(0, 40, 2), (0, 1, 2))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.2) if parameter.ndim == 2 else parameter.uniform_(0.5, 1.5)
            parameter.copy_(parameter.half())
    return head


def logits_of(head, known):
    return [head.lm_head(head.norm(states)) for states in known]


def test_it_computes_what_decoding_computes(model, head, tmp_path):
    """Every chain of drafts: from each position, the logits of a draft behind true features, and behind its own."""
    rows = written(model, 1, seed=2).tokens
    streams, _ = model_streams(model.double(), rows, head.layers_read)
    embeddings = model.model.embed_tokens(rows[:, 1:])
    unrolled = logits_of(head.double(), head.unroll(embeddings, streams[:, :-1], DEPTH))
    model.float()

    head.save(tmp_path / "head")
    target = load_model(model.directory, dtype=torch.float64)
    loaded = load_eagle3_head(tmp_path / "head", target)
    assert torch.equal(loaded.vocabulary, torch.arange(0, 40, 2))
    _, handed = target.run_prompt(rows[0, :-1], target.new_cache(ROW), loaded.feature_layers)
    torch.testing.assert_close(handed, streams[0, :-1], atol=1e-5, rtol=1e-5)  # their norms compute in float32
    for left in range(0, ROW - 1 - DEPTH, 5):
        cache, n = loaded.new_cache(ROW), left + 1
        known = loaded.known(handed[:n])
        outputs = loaded(rows[0, 1 : n + 1], known, torch.arange(n), cache, causal_mask(n, "cpu"))
        cache.length += n
        for step in range(DEPTH):
            logits = loaded.logits(outputs[-1:])[0]
            torch.testing.assert_close(logits, unrolled[step][0, left + step], atol=1e-4, rtol=1e-4)
            position = left + step + 1
            token = rows[0, position + 1 : position + 2]
            outputs = loaded(token, outputs[-1:], torch.tensor([position]), cache, causal_mask(1, "cpu"))
            cache.length += 1


def test_no_draft_reads_a_token_ahead(model, head):
    rows = written(model, 1, seed=3).tokens
    streams, _ = model_streams(model, rows, head.layers_read)
    embeddings = model.model.embed_tokens(rows[:, 1:]).detach().requires_grad_()
    unrolled = logits_of(head, head.unroll(embeddings, streams[:, :-1], DEPTH))
    for logits in unrolled:
        (gradient,) = torch.autograd.grad(logits[0, 10].sum(), embeddings, retain_graph=True)
        read = gradient[0].abs().sum(-1) > 0
        assert read[:11].all()
        assert not read[11:].any()


def test_the_loss_is_the_cross_entropy_at_positions_that_can_be_right(model, head, monkeypatch):
    """Of answers, that is; and however many positions' logits are computed at once."""
    rows, decay = written(model, 2, seed=4), 0.5
    rows.answers[1, 5:12] = False
    streams, features = model_streams(model, rows.tokens, head.layers_read)
    logits = model.lm_head(features)
    unrolled = logits_of(head, head.unroll(model.model.embed_tokens(rows.tokens[:, 1:]), streams[:, :-1], DEPTH))
    expected, drafted = 0.0, list(range(0, 40, 2))
    for step in range(DEPTH):
        losses = []
        for row in range(2):
            for position in range(DEPTH - 1, ROW - 2):
                wanted = logits[row, position + 1]
                if int(wanted.argmax()) in drafted and rows.answers[row, position + 2]:
                    p = wanted[drafted].softmax(-1)
                    losses.append(-(p * unrolled[step][row, position].log_softmax(-1)).sum())
        assert 2 < len(losses) < 2 * (ROW - DEPTH - 1)
        expected += decay**step * torch.stack(losses).mean()
    expected = expected / (1 + decay + decay**2)
    gradients = []
    for at_once in (1000, 7):
        monkeypatch.setattr(module, "chunk_size", lambda lm_head, size=at_once: size)
        found = eagle3_loss(head, model, rows, DEPTH, decay)
        torch.testing.assert_close(found, expected)
        gradients.append(torch.autograd.grad(found, head.parameters(), retain_graph=True))
    wanted = torch.autograd.grad(expected, head.parameters())
    for gradient in gradients:
        torch.testing.assert_close(gradient, wanted)


def test_a_trained_head_is_accepted(model, tmp_path):
    """From the text that the model writes, in the command's form: trained, saved, loaded and decoded with."""
    rows, held_out = written(model, 256, seed=5), written(model, 32, seed=6)
    schedule = Schedule(steps=120, learning_rate=5e-3, weight_decay=0.01)
    recipe = Eagle3Recipe(schedule, rows=64, draft_vocab_size=36, depth=3)
    (tmp_path / "eagle3.json").write_text('{"steps": 120}')  # as if that were what fits
    head, run = train_eagle3_head("eagle3", model, Text(rows, held_out), recipe, 60.0, tmp_path)
    torch.manual_seed(recipe.seed)
    untrained = drafts_right(Eagle3Head(model.config, head.drafted, (0, 1, 2)), model, [held_out], 3)
    assert len(run["accuracy"]) == 3
    assert all(now > before + 0.2 for now, before in zip(run["accuracy"], untrained, strict=True))
    assert run["curve"][-1]["held_out_loss"] < 2.5
    assert run["drafted_share"] == head.t2d[rows.tokens].double().mean().item().__round__(4) > 0.9

    head.save(tmp_path / "head")
    target = load_model(model.directory, dtype=torch.float64)
    speculator = Speculator(target, EagleDrafter(load_eagle3_head(tmp_path / "head", target), 12, 3, 4))
    lengths = []
    for row in held_out.tokens[:8]:
        tokens = list(speculator.prefill(row[:2].tolist(), Greedy()).tokens)
        while len(tokens) < ROW - 2:
            step = speculator.step(ROW - 2 - len(tokens))
            lengths.append(step.accepted_length)
            tokens += step.tokens
    assert sum(lengths) / len(lengths) > 1.8


def test_it_starts_better_than_from_nothing(model):
    """By its model's LM head, and a linear map to the next features; its layer adds nothing yet."""
    rows, held_out = written(model, 64, seed=7), written(model, 16, seed=8)
    torch.manual_seed(0)
    head = Eagle3Head(model.config, torch.arange(40), (0, 1, 2))
    (before,) = drafts_right(head, model, [held_out], 1)
    start_from_model(head, model, [rows])
    assert torch.equal(head.lm_head.weight, model.lm_head.weight)
    streams, _ = model_streams(model, rows.tokens, head.layers_read)
    embeddings = model.model.embed_tokens(rows.tokens[:, 1:])
    torch.testing.assert_close(head.unroll(embeddings, streams[:, :-1], 1)[0], head.fc(streams[:, :-1]))
    (after,) = drafts_right(head, model, [held_out], 1)
    assert after > before + 0.1


def test_layers_to_read():
    assert [layers_to_read(count) for count in (3, 4, 5, 7, 32, 80)] == [
        (0, 1, 2),
        (1, 2, 3),
        (1, 2, 4),
        (2, 3, 4),
        (2, 16, 29),
        (2, 40, 77),
    ]
    with pytest.raises(SpecquantError, match="a model of 2 layers has no 3 that an EAGLE-3 head could read"):
        layers_to_read(2)
    with pytest.raises(SpecquantError, match="an EAGLE-3 head reads 3 layers, not 2"):
        Eagle3Head(LlamaConfig(vocab_size=8, hidden_size=64), torch.arange(4), (1, 2))
