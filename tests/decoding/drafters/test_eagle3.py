"""EAGLE-3's drafts: EAGLE-2's trees from another head, of features that the target's one pass hands out."""

import json
from copy import deepcopy

import pytest
import torch
from transformers import LlamaConfig

from specquant.cli import main
from specquant.decoding import EagleDrafter, Greedy, Speculator
from specquant.decoding.drafters import METHODS, PAPER_METHODS
from specquant.decoding.lookup import FirstDraft
from specquant.decoding.method import DraftSettings, Plan
from specquant.decoding.models import Models, tiny_models
from specquant.errors import SpecquantError
from specquant.models import graphs
from specquant.models.eagle3 import Eagle3Head
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import causal_mask, set_compute_dtype
from specquant.models.transforms import (
    reading_rotated,
    rotate_ends,
    rotate_layer,
    rotation_of,
    unpack_layer,
)
from specquant.quant.hadamard import random_hadamard
from tests.decoding.conftest import lossless_steps, perturbed, random_eagle3_head, random_head, random_model
from tests.decoding.test_speculator import PROMPTS, VOCABULARY, assert_targets_joint_distribution, decode


@pytest.fixture(scope="module")
def head(target):
    return random_eagle3_head(target, 30)


def speculators(target, intermediate, head):
    return {
        "eagle3": Speculator(target, EagleDrafter(head, 12, 3, 4)),
        "hierarchical": Speculator(target, Speculator(intermediate, EagleDrafter(head, 12, 3, 4), 4)),
    }


@pytest.mark.parametrize("method", ["eagle3", "hierarchical"])
def test_greedy_decoding_is_lossless_in_one_pass_a_step(target, intermediate, head, method):
    """Also of tokens that the head never drafts; the pass that verifies hands out the features."""
    speculator = speculators(target, intermediate, head)[method]
    steps = [step for prompt in PROMPTS for step in lossless_steps(speculator, prompt, 60)]
    lengths = [step.accepted_length for step in steps]
    drafted = {token for step in steps if method == "eagle3" for token in step.tree.tokens[1:].tolist()}
    assert max(lengths) > 1
    assert drafted <= set(head.vocabulary.tolist())


@pytest.mark.parametrize("norm_before_residual", [False, True])
def test_what_a_drafter_knows_is_what_it_would_know_from_the_start(target, norm_before_residual):
    head = random_eagle3_head(target, 37, layers=(1, 2, 2), norm_before_residual=norm_before_residual)
    speculator = Speculator(target, EagleDrafter(head, 12, 3, 4))
    speculator.prefill(PROMPTS[3], Greedy())
    for _ in range(8):
        step = speculator.step(30)
        before = speculator.tokens[: -len(step.tokens)]
        _, streams = target.run_prompt(torch.tensor(before[:-1]), target.new_cache(96), (1, 2, 2))
        fresh = EagleDrafter(head, 12, 3, 4)
        fresh.start(before, streams, Greedy())
        assert fresh.propose(29).tokens.tolist() == step.tree.tokens.tolist()


@pytest.mark.parametrize("method", ["eagle3", "hierarchical"])
def test_sampling_has_the_targets_joint_distribution(method):
    target = random_model(VOCABULARY, layers=1, seed=7, scale=0.3, context_length=16)
    head = random_eagle3_head(target, 4, layers=(0, 0, 1))
    small = perturbed(target, 0.3, seed=8)
    speculator = {
        "eagle3": lambda: Speculator(target, EagleDrafter(head, 8, 2, 3)),
        "hierarchical": lambda: Speculator(target, Speculator(small, EagleDrafter(head, 5, 2, 2), 2)),
    }[method]()
    assert_targets_joint_distribution(target, speculator, draws=400)


def rotated(model):
    """The same model with its residual stream rotated, in float64: nothing is rounded."""
    copy = deepcopy(model)
    rotation = random_hadamard(model.config.hidden_size)
    for layer in copy.layers:
        unpack_layer(layer)
        rotate_layer(layer, rotation)
    rotate_ends(copy, rotation)
    return copy


def test_an_unrotated_and_a_rotated_target_accept_the_same(target, head):
    """The published head on the rotated target, with its `fc` as loading makes it; and without, for what that is."""
    other = rotated(target)
    meeting, blind = deepcopy(head), deepcopy(head)
    meeting.fc.weight.copy_(reading_rotated(head.fc.weight, rotation_of(other)[0]))
    trees = {}
    for name, model, of_head in (("plain", target, head), ("rotated", other, meeting), ("blind", other, blind)):
        speculator, trees[name] = Speculator(model, EagleDrafter(of_head, 12, 3, 4)), []
        for prompt in PROMPTS:
            speculator.prefill(prompt, Greedy())
            for _ in range(12):
                step = speculator.step(20)
                trees[name].append((step.tree.tokens.tolist(), step.tree.parents.tolist(), step.tokens))
    assert trees["rotated"] == trees["plain"]
    assert trees["blind"] != trees["plain"]


def test_a_captured_pass_hands_out_its_streams(captured, target, monkeypatch):
    """And one without layers, of as many rows, is another graph."""
    graphed, tokens, layers = GraphedLlama(target), torch.tensor([3, 1, 4, 1, 5]), (0, 2, 1)
    cache, expected_cache, mask = target.new_cache(20), target.new_cache(20), causal_mask(5, "cpu")
    expected = target.run(tokens, torch.arange(5), expected_cache, mask, layers)
    for _ in range(2):
        features, streams = graphed.run(tokens, torch.arange(5), cache, mask, layers)
        assert torch.equal(features, expected[0])
        assert torch.equal(streams, expected[1])
        assert torch.equal(graphed.logits(features), target.logits(features))
        assert torch.equal(graphed(tokens, torch.arange(5), cache, mask), expected[0])
    assert len(captured) == 2


def test_a_draft_is_one_graph_for_each_number_of_rows(captured, target, head, monkeypatch):
    def steps():
        speculator = Speculator(target, EagleDrafter(head, 12, 3, 4))
        speculator.prefill(PROMPTS[3], Greedy())
        taken = [speculator.step(30) for _ in range(8)]
        return speculator, [(step.tree.tokens.tolist(), step.tokens) for step in taken]

    _, expected = steps()
    assert not captured
    monkeypatch.setattr(graphs, "capturable", lambda model: isinstance(model, Eagle3Head))
    speculator, found = steps()
    assert found == expected
    assert len(captured) == len(speculator.drafter._graphs) < 8


def test_a_head_may_read_a_target_of_another_width():
    """`target_hidden_size`: it has an embedding of its own then."""
    target, narrow = random_model(), random_model(hidden_size=64)
    head = random_eagle3_head(narrow, 37, (0, 1, 2))
    head.fc = torch.nn.Linear(3 * 128, 64, bias=False, dtype=torch.float64)
    speculator = Speculator(target, EagleDrafter(head, 12, 3, 4))
    assert decode(speculator, PROMPTS[3], 40) == decode(Speculator(target), PROMPTS[3], 40)


def test_heads_of_different_features_are_not_joined(target, head):
    with pytest.raises(SpecquantError, match="drafters that read features of different layers cannot be joined"):
        FirstDraft(EagleDrafter(head, 12, 3, 4), EagleDrafter(random_head(target), 12, 3, 4))


def test_its_methods_are_built_as_the_settings_say(small_models):
    settings = DraftSettings(12, 4, 5, inner_draft_size=9, inner_iterations=2, min_draft_length=3)
    models = tiny_models(small_models)
    drafter = models.speculator("eagle3", settings).drafter
    assert (drafter.draft_size, drafter.iterations, drafter.top_k, drafter.feature_layers) == (12, 4, 5, (0, 1, 2))
    assert drafter.head is models.speculator(Plan("eagle3", 7, 2)).drafter.head  # loaded once
    inner = models.speculator("hierarchical-eagle3", settings).drafter
    assert (inner.model, inner.min_draft_length) == (models.intermediate, 3)
    assert (inner.drafter.draft_size, inner.drafter.iterations) == (9, 2)
    for name in ("eagle3", "hierarchical-eagle3"):
        assert {probe.method for probe in METHODS[name].probes} == {name}
        assert name not in PAPER_METHODS


@pytest.mark.parametrize(
    ("method", "missing"), [("eagle3", "eagle3 target"), ("hierarchical-eagle3", "eagle3 intermediate")]
)
def test_a_missing_head_is_named(small_models, method, missing):
    models = Models(small_models / "target", intermediate=small_models / "intermediate")
    with pytest.raises(SpecquantError, match=f"the method {method} needs the directory of the {missing} model"):
        models.speculator(method)


def test_heads_of_other_models_are_refused_before_any_is_loaded(small_models, monkeypatch):
    def load(*_, **__):
        raise AssertionError("loaded before the companions were checked")

    for name in ("load_model", "load_eagle3_head"):
        monkeypatch.setattr(f"specquant.decoding.models.{name}", load)
    swapped = {
        "eagle3_target": small_models / "eagle3-intermediate",
        "eagle3_intermediate": small_models / "eagle3-target",
    }
    models = Models(small_models / "target", intermediate=small_models / "intermediate", **swapped)
    with pytest.raises(SpecquantError, match="reads features of 128 numbers, and its model has hidden_size 256"):
        models.speculator("eagle3")
    with pytest.raises(SpecquantError, match="reads features of 256 numbers, and its model has hidden_size 128"):
        models.speculator("hierarchical-eagle3")
    wrong = Models(small_models / "target", eagle3_target=small_models / "eagle-target")
    with pytest.raises(SpecquantError, match=r"is no EAGLE-3 head: its config\.json has no draft_vocab_size"):
        wrong.speculator("eagle3")


def test_the_command_takes_its_heads(small_models, capsys):
    command = ["generate", "--model", str(small_models / "target"), "--prompt", "7 plus 5 makes", "--json"]
    command += ["--max-new-tokens", "12", "--dtype", "float64"]
    told = []
    head = ["--eagle3-target", str(small_models / "eagle3-target")]
    for options in ([], ["--method", "eagle3", *head], ["--method", "hierarchical-eagle3"]):
        assert main([*command, *options]) == 0
        told.append(json.loads(capsys.readouterr().out)["token_ids"])
    assert told[0] == told[1] == told[2]
    wrong = ["--eagle3-target", str(small_models / "eagle-target")]
    assert main([*command, *wrong]) == 2  # also where no method would look at it
    assert "is no EAGLE-3 head: its config.json has no draft_vocab_size" in capsys.readouterr().err


def test_only_what_can_be_drafted_can_be_followed(target):
    head = random_eagle3_head(target, 3)
    with pytest.raises(SpecquantError, match=r"top-k 4 is more than the vocabulary has \(3\)"):
        EagleDrafter(head, 12, 3, 4)
    assert isinstance(head.config, LlamaConfig)


@pytest.mark.gpu
def test_on_a_gpu_graphs_and_launches_give_the_same_trees(target, head, monkeypatch):
    """The target's pass, which hands out the streams, and the draft."""
    model = graphs.graphed(set_compute_dtype(deepcopy(target), torch.float16).cuda())
    on_gpu = set_compute_dtype(deepcopy(head), torch.float16).cuda()
    on_gpu.embed_tokens = model.embed_tokens

    def trees():
        speculator = Speculator(model, EagleDrafter(on_gpu, 12, 3, 4))
        speculator.prefill(PROMPTS[3], Greedy())
        taken = [speculator.step(30) for _ in range(8)]
        return speculator, [(step.tree.tokens.tolist(), step.tree.parents.tolist(), step.tokens) for step in taken]

    with_graphs, found = trees()
    assert with_graphs.drafter._graphs
    monkeypatch.setattr(graphs, "capturable", lambda module: False)
    model = model.model
    without, expected = trees()
    assert without.drafter._graphs is None
    assert found == expected
