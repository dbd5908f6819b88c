"""Drafts without weights in every place: below the target, below a small model, and before a head. Always lossless."""

import json

import pytest
import torch

from specquant.cli import main
from specquant.decoding import EagleDrafter, Greedy, Sampling, Speculator
from specquant.decoding.drafters import METHODS
from specquant.decoding.drafters.eagle2 import MOST_FIRST_ROWS
from specquant.decoding.drafters.suffix import SuffixAutomaton, SuffixDrafter
from specquant.decoding.lookup import FirstDraft, HierarchicalLookup, LookupMethod, LookupOrHead
from specquant.decoding.method import DraftSettings
from specquant.decoding.models import Models, tiny_models
from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models.loading import load_tokenizer
from tests.decoding.conftest import lossless_steps, perturbed, random_head, random_model
from tests.decoding.test_speculator import (
    PROMPTS,
    VOCABULARY,
    assert_state_is_fresh,
    assert_targets_joint_distribution,
    decode,
)

LOOKUPS = [name for name, method in METHODS.items() if isinstance(method, LookupMethod)]
SEQUENCES = DraftSettings(12, 3, 4, min_draft_length=4, long_match=2)
TREES = DraftSettings(12, 3, 4, min_draft_length=4, long_match=2, ngram_length=2, lookup_branches=2, earlier_tokens=99)


class Family:
    """A target, a small model and a head that are loaded already."""

    def __init__(self, target, intermediate, head):
        self.target, self.intermediate, self.head = target, intermediate, head

    def speculator(self, method, settings):
        method = METHODS[method]
        plan = method.plan(settings)

        def trees(which):
            assert which == "target"
            return EagleDrafter(self.head, *plan.tree, settings.top_k)

        return Speculator(self.target, method.drafter(plan, self, trees, settings))


@pytest.fixture
def family(target, intermediate, head):
    return Family(target, intermediate, head)


def assert_followed(speculator):
    """All levels know exactly the confirmed tokens."""
    if not isinstance(speculator.drafter, FirstDraft):
        assert_state_is_fresh(speculator)
    level = speculator
    while isinstance(level, Speculator):
        level = level.drafter
    for drafter in level.drafters if isinstance(level, FirstDraft) else (level,):
        assert drafter.tokens == speculator.tokens
        if isinstance(drafter, SuffixDrafter):
            fresh = SuffixAutomaton([*(token for answer in drafter.answers for token in answer), *speculator.tokens])
            assert (drafter.automaton.following, drafter.automaton.count[1:]) == (fresh.following, fresh.count[1:])


def test_both_lookups_have_every_place():
    kinds = (LookupMethod, HierarchicalLookup, LookupOrHead)
    for lookup in ("prompt-lookup", "suffix"):
        for kind, name in zip(kinds, (lookup, f"hierarchical-{lookup}", f"{lookup}-eagle2"), strict=True):
            assert type(METHODS[name]).__bases__ == (kind,)
            assert METHODS[name].lookup is METHODS[lookup].lookup
    assert len(LOOKUPS) == 6


@pytest.mark.parametrize("settings", [SEQUENCES, TREES], ids=["sequences", "trees"])
@pytest.mark.parametrize("method", LOOKUPS)
def test_greedy_decoding_is_lossless_in_one_pass_a_step(family, method, settings):
    speculator, lengths = family.speculator(method, settings), []
    for prompt in PROMPTS:
        for step in lossless_steps(speculator, prompt, 60):
            lengths.append(step.accepted_length)
            assert_followed(speculator)
    assert min(lengths) == 1
    assert max(lengths) > 1


@pytest.mark.parametrize("settings", [SEQUENCES, TREES], ids=["sequences", "trees"])
@pytest.mark.parametrize("method", LOOKUPS)
def test_sampling_has_the_targets_joint_distribution(method, settings):
    target = random_model(VOCABULARY, layers=1, seed=7, scale=0.3, context_length=16)
    family = Family(target, perturbed(target, 0.3, seed=8), random_head(target))
    settings = DraftSettings(8, 2, 3, min_draft_length=2, long_match=1, lookup_branches=settings.lookup_branches)
    assert_targets_joint_distribution(target, family.speculator(method, settings), draws=400)


def test_a_head_drafts_where_no_long_match_stood_before(target, head):
    """And what it then knows is what it would know if it had drafted all the time."""
    drafts = {"lookup": 0, "head": 0}
    settings = DraftSettings(12, 3, 4, long_match=2, ngram_length=1)
    for method in ("suffix-eagle2", "prompt-lookup-eagle2"):
        speculator = Family(target, None, head).speculator(method, settings)
        lookup, below = speculator.drafter.drafters
        speculator.prefill([7, 8, 9, 10, 11, 7, 8, 9, 10], Greedy())
        for _ in range(24):
            alone = lookup.propose(8).tokens.tolist()
            step = speculator.step(9)
            drafted = step.tree.tokens.tolist()
            if len(alone) > 1:
                assert drafted == alone
                drafts["lookup"] += 1
            else:
                fresh = EagleDrafter(head, 12, 3, 4)
                features = target.prefill(torch.tensor(speculator.tokens), target.new_cache(96))
                before = len(speculator.tokens) - len(step.tokens)
                fresh.start(speculator.tokens[:before], features[: before - 1], Greedy())
                assert drafted == fresh.propose(8).tokens.tolist()
                drafts["head"] += 1
            assert below.tokens == speculator.tokens
    assert min(drafts.values()) > 2


def test_a_head_that_was_not_asked_for_long_takes_few_rows_into_its_draft(target, head, monkeypatch):
    """On a GPU every number of rows that drafts begin with is a graph of its own."""
    drafter, rows = EagleDrafter(head, 12, 3, 4), []
    fresh = EagleDrafter(head, 12, 3, 4)
    tokens = list(range(30))
    features = target.prefill(torch.tensor(tokens), target.new_cache(96))
    drafter.start(tokens[:5], features[:4], Greedy())
    for length in range(5, 30):
        drafter.commit(length, tokens[length : length + 1], features[length - 1 : length])
    draft = drafter.draft
    monkeypatch.setattr(drafter, "draft", lambda tokens, *others: rows.append(len(tokens)) or draft(tokens, *others))
    fresh.start(tokens, features[:-1], Greedy())
    assert drafter.propose(9).tokens.tolist() == fresh.propose(9).tokens.tolist()
    assert rows[0] <= MOST_FIRST_ROWS


def test_the_settings_reach_the_lookups(small_models):
    models = tiny_models(small_models)
    settings = DraftSettings(ngram_length=5, lookup_tokens=7, lookup_branches=2, long_match=6, earlier_tokens=50)
    alone = models.speculator("prompt-lookup", settings).drafter
    assert (alone.ngram_length, alone.draft_tokens, alone.branches, alone.shortest_match) == (5, 7, 2, 1)
    joined, head = models.speculator("prompt-lookup-eagle2", settings).drafter.drafters
    assert (joined.ngram_length, joined.shortest_match) == (6, 6)
    assert isinstance(head, EagleDrafter)
    inner = models.speculator("hierarchical-suffix", settings).drafter
    assert (inner.model, inner.min_draft_length) == (models.intermediate, 6)
    suffix = inner.drafter
    assert (suffix.draft_tokens, suffix.branches, suffix.shortest_match, suffix.earlier_tokens) == (7, 2, 1, 50)


def test_results_say_of_lookups_what_was_chosen():
    """So answers from before there were settings of lookups can be gone on with."""
    paper = {"draft_size": 60, "iterations": 6, "top_k": 10}
    paper |= {"inner_draft_size": 30, "inner_iterations": 3, "min_draft_length": 6}
    assert DraftSettings().told() == paper
    chosen = DraftSettings(iterations=5, lookup_branches=2, earlier_tokens=9)
    assert chosen.told() == paper | {"iterations": 5, "lookup_branches": 2, "earlier_tokens": 9}


def test_a_companion_that_many_methods_need_is_checked_once(small_models, monkeypatch):
    from specquant.decoding import models as assembled

    checked, check = [], assembled.check_drafting_model
    monkeypatch.setattr(assembled, "check_drafting_model", lambda *paths: checked.append(paths) or check(*paths))
    models = tiny_models(small_models)
    for method in METHODS:
        models.check_companions(method)
    assert len(checked) == 1


def test_bad_settings_are_one_sentence(small_models):
    models = Models(small_models / "target")
    for settings, sentence in (
        (DraftSettings(ngram_length=0), "the n-gram length of prompt lookup is 0; it must be at least 1"),
        (DraftSettings(lookup_tokens=0), "the number of tokens that prompt lookup drafts is 0; it must be at least 1"),
    ):
        with pytest.raises(SpecquantError, match=f"^{sentence}$"):
            models.speculator("prompt-lookup", settings)


def test_the_command_takes_settings_and_refuses_what_drafts_nothing(capsys):
    target = str(project_root() / "data/tiny/target")
    prompt = "Question: Tom has 3 boxes with 4 apples each. How many apples does he have?\nAnswer:"
    command = ["generate", "--model", target, "--prompt", prompt, "--max-new-tokens", "24", "--json"]
    told = []
    for options in (
        [],
        ["--method", "suffix"],
        ["--method", "suffix", "--lookup-branches", "3", "--lookup-tokens", "6"],
        ["--method", "prompt-lookup-eagle2", "--long-match", "2", "--draft-size", "8", "--iterations", "2"],
    ):
        assert main([*command, *options]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert all(one["token_ids"] == told[0]["token_ids"] for one in told)
    assert all(max(one["accepted_lengths"]) > 1 for one in told[1:])
    for options, says in (
        (["--ngram-length", "0"], "the n-gram length is 0; it must be at least 1"),
        (["--lookup-tokens", "0"], "--lookup-tokens is 0; it must be at least 1"),
        (["--earlier-tokens", "0"], "--earlier-tokens is 0; it must be at least 1"),
    ):
        assert main([*command, "--method", "prompt-lookup", *options]) == 2
        assert capsys.readouterr().err == f"specquant: {says}\n"


def test_drafters_of_two_vocabularies_are_not_joined(target, head):
    other = METHODS["suffix"].lookup(40, 96)
    with pytest.raises(SpecquantError, match="drafters with vocabularies of 37 and 40 entries cannot be joined"):
        FirstDraft(other, EagleDrafter(head, 12, 3, 4))


def test_each_place_accepts_drafts_of_the_trained_models():
    """Quoting answers: what lookups are for. They draft below the small model, too, and less often than a head does."""
    models = tiny_models("data/tiny", dtype=torch.float64)
    prompt = "Question: Tom has 3 boxes with 4 apples each. How many apples does he have?\nAnswer:"
    tokens = load_tokenizer(project_root() / "data/tiny/target")(prompt)["input_ids"]
    expected = decode(models.speculator("autoregressive"), tokens, 40)
    for method in LOOKUPS:
        speculator, lengths = models.speculator(method), []
        found = list(speculator.prefill(tokens, Greedy()).tokens)
        while len(found) < 40:
            step = speculator.step(40 - len(found))
            found += step.tokens
            lengths.append(step.accepted_length)
        assert found == expected, method
        assert max(lengths) > 2, method


def test_sampling_with_lookups_accepts_and_rejects(family):
    for method in LOOKUPS:
        speculator, accepted, rejected, count = family.speculator(method, TREES), 0, 0, 1
        speculator.prefill([7, 8, 9, 7, 8, 9, 7, 8], Sampling(temperature=0.8, seed=1))
        while count < 80:
            step = speculator.step(80 - count)
            count += step.accepted_length
            accepted += len(step.path)
            rejected += len(step.path) < step.tree.depths.max()
        assert accepted > 0, method
        assert rejected > 0, method
