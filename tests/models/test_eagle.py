"""EAGLE heads made cheaper, and random ones of true shapes."""

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.models import synthetic
from specquant.models.cache import KVCache
from specquant.models.eagle import most_frequent, shrink_head
from specquant.models.llama import causal_mask
from specquant.models.memory import NotEnoughMemory
from specquant.models.synthetic import synthetic_ends, synthetic_head
from specquant.quant import PackedLinear
from tests.family import small_llama


@pytest.fixture
def config():
    return small_llama(vocab_size=320)


def output(head):
    rows = torch.arange(6)
    features = torch.randn(6, 128, generator=torch.Generator().manual_seed(0)).to(head.dtype)
    return head(rows * 7, features, rows, head.new_cache(8), causal_mask(6, "cpu"))


def test_a_rounded_head_is_near_the_head(config):
    ends = synthetic_ends(config, 64, torch.float32, "cpu")
    exact, rounded = (synthetic_head(config, ends, scheme) for scheme in (None, "w4a16-g128"))
    matrices = (rounded.fc, rounded.lm_head, *rounded.layer.children())
    assert sum(isinstance(part, PackedLinear) for part in matrices) == 6
    assert ends.lm_head is exact.lm_head  # nobody else's changed
    assert rounded.bytes_read < 0.3 * exact.bytes_read
    error = (output(rounded) - output(exact)).norm() / output(exact).norm()
    assert 0.01 < error < 0.3
    features = output(exact)
    error = (rounded.logits(features) - exact.logits(features)).norm() / exact.logits(features).norm()
    assert 0.01 < error < 0.2


def test_a_restricted_vocabulary_is_mapped_back(config):
    ends = synthetic_ends(config, 64, torch.float32, "cpu")
    head, kept = synthetic_head(config, ends), torch.tensor([3, 50, 51, 99, 200, 319])
    features = output(head)
    logits = head.logits(features)
    everywhere = head.likeliest(features, 320)[1]
    log_p, tokens = shrink_head(head, vocabulary=kept).likeliest(features, 6)
    expected = [[token for token in row.tolist() if token in kept] for row in everywhere]
    assert tokens.tolist() == expected
    torch.testing.assert_close(log_p, logits[:, kept].log_softmax(-1).sort(descending=True).values)


@pytest.mark.bits
def test_the_whole_vocabulary_changes_nothing(config):
    ends = synthetic_ends(config, 64, torch.float32, "cpu")
    head, features = synthetic_head(config, ends), torch.randn(4, 128)
    expected = head.likeliest(features, 9)
    for ours, theirs in zip(
        shrink_head(head, vocabulary=torch.arange(320)).likeliest(features, 9), expected, strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_most_frequent_tokens():
    assert most_frequent([5, 5, 2, 9, 9, 9], 2, 10).tolist() == [5, 9]
    assert most_frequent([5, 5, 2, 9, 9, 9], 5, 10).tolist() == [0, 1, 2, 5, 9]  # what never comes: the lowest
    for count in (0, 11):
        with pytest.raises(SpecquantError, match="choose fewer"):
            most_frequent([1], count, 10)


def test_what_cannot_be_stored_is_refused(config):
    head = synthetic_head(config, synthetic_ends(config, 64, torch.float32, "cpu"))
    with pytest.raises(SpecquantError, match="rotates a whole model"):
        shrink_head(head, "w4a8-qqq")
    with pytest.raises(SpecquantError, match="its outputs must be a multiple of 16"):
        shrink_head(head, "w4a16-g128", torch.arange(50))


def test_a_head_that_does_not_fit_is_refused(config, monkeypatch):
    ends = synthetic_ends(config, 64, torch.float32, "cpu")
    monkeypatch.setattr(synthetic, "free_bytes", lambda device: 1000)
    with pytest.raises(NotEnoughMemory, match="EAGLE head of 128 needs"):
        synthetic_head(config, ends)


def test_ends_are_a_model_without_layers(config):
    ends = synthetic_ends(config, 64, torch.float32, "cpu")
    assert len(ends.layers) == 0
    assert config.num_hidden_layers == 2
    assert ends.lm_head.weight.std() == pytest.approx(128**-0.5, rel=0.05)
    assert isinstance(synthetic_head(config, ends).new_cache(4), KVCache)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [(None, None), ("w4a16-g128", None), ("w4a16-g128", 64), (None, 64)])
def test_on_a_gpu_cheaper_heads_draft_by_graphs_as_by_launches(config, options, monkeypatch):
    from specquant.decoding import EagleDrafter
    from specquant.models import graphs

    ends = synthetic_ends(config, 64, torch.float16, "cuda")
    head = synthetic_head(config, ends, *options)

    def draft():
        drafter = EagleDrafter(head, 24, 3, 10)
        features = torch.randn(20, 128, generator=torch.Generator().manual_seed(0)).half().cuda()
        drafter.start(list(range(21)), features, None)
        tree = drafter.propose(5)
        return tree.tokens.tolist(), tree.parents.tolist()

    expected = draft()
    monkeypatch.setattr(graphs, "capturable", lambda model: False)
    assert draft() == expected
