"""Decoding with every operation's Triton kernel: what their own tests cannot show is that they fit together."""

import sys

import pytest
import torch

from specquant.decoding.acceptance import Greedy
from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.decoding.speculator import Speculator
from specquant.models import graphs
from specquant.models.llama import set_compute_dtype

from .conftest import random_head, random_model

PROMPT = [3, 14, 15, 9, 26, 5]


@pytest.fixture
def all_kernels(device, monkeypatch):
    """Let operations run their kernels, wherever tensors are."""

    def switch(on: bool) -> None:
        for name in ("attention", "norm", "swiglu", "rotary", "top_k", "tree", "acceptance", "compaction"):
            monkeypatch.setattr(sys.modules[f"specquant.kernels.{name}"], "on_gpu", lambda x: on)

    return switch


def decode(device, steps):
    """Features of the prompt, and then the trees and tokens of a few EAGLE-2 steps."""
    torch.manual_seed(0)  # for the head's bias
    model = random_model()
    head = set_compute_dtype(random_head(model), torch.float16).to(device)
    model = set_compute_dtype(model, torch.float16).to(device)
    features = model.prefill(torch.tensor(PROMPT, device=device), model.new_cache(32))
    speculator = Speculator(model, EagleDrafter(head, draft_size=7, iterations=2, top_k=3))
    speculator.prefill(PROMPT, Greedy())
    taken = [speculator.step(8) for _ in range(steps)]
    return features, [(step.tree.tokens.tolist(), step.tree.parents.tolist(), step.tokens) for step in taken]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of rows that only fill up a tile
def test_kernels_decode_as_their_references_do(all_kernels, device, captured, monkeypatch):
    """Drafts as graphs, whose kernels find the cache's length on the device."""
    monkeypatch.setattr(graphs, "capturable", lambda model: False)
    all_kernels(False)
    expected_features, expected_steps = decode(device, steps=3)
    all_kernels(True)
    monkeypatch.setattr(graphs, "capturable", lambda model: True)
    features, steps = decode(device, steps=3)
    assert captured
    torch.testing.assert_close(features, expected_features, rtol=1e-2, atol=1e-2)
    assert steps == expected_steps
    assert any(len(tokens) > 1 for _, _, tokens in steps)  # a draft was accepted: the cache kept a path
