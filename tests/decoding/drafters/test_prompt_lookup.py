"""Prompt lookup: its drafts by hand, and that it changes no token."""

import json

import pytest

from specquant.cli import main
from specquant.decoding import Greedy, Sampling, Speculator
from specquant.decoding.drafters import METHODS, PAPER_METHODS
from specquant.decoding.drafters.prompt_lookup import PromptLookupDrafter
from specquant.decoding.method import Plan
from specquant.decoding.models import Models
from specquant.errors import SpecquantError
from specquant.files import project_root
from tests.decoding.conftest import lossless_steps, perturbed, random_model
from tests.decoding.test_speculator import VOCABULARY, assert_targets_joint_distribution

PROMPTS = ([3, 14, 15, 9, 26, 5], [7, 8, 9, 7, 8, 9, 7, 8], [1])


def lookup(model, **settings):
    return PromptLookupDrafter(model.config.vocab_size, model.context_length, model.device, **settings)


def drafted(tokens, limit=100, **settings):
    drafter = PromptLookupDrafter(100, 100, **settings)
    drafter.start(tokens, None, Greedy())
    tree = drafter.propose(limit)
    assert tree.tokens[0] == tokens[-1]
    assert tree.parents.tolist() == list(range(-1, len(tree) - 1))  # one branch
    assert tree.q is None
    return tree.tokens[1:].tolist()


@pytest.mark.parametrize(
    ("tokens", "settings", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], {}, [4, 5, 1, 2, 3]),  # three tokens match
        ([9, 3, 7, 1, 2, 3, 4, 5, 1, 2, 3], {}, [4, 5, 1, 2, 3]),  # which goes before the one that stands first
        ([9, 3, 7, 2, 3, 8, 5, 2, 3], {}, [8, 5, 2, 3]),  # then two
        ([9, 3, 7, 8, 5, 2, 3], {}, [7, 8, 5, 2, 3]),  # then one
        ([9, 3, 7, 1, 2, 3, 4, 5, 1, 2, 3], {"ngram_length": 1}, [7, 1, 2, 3, 4, 5, 1, 2, 3]),
        ([1, 2, 3, 4, 5, 1, 2, 3], {"draft_tokens": 2}, [4, 5]),
        ([1, 2, 3, 4, 5, 1, 2, 3], {"limit": 1}, [4]),
        ([1, 2, 3, 4, 5, 1, 2, 3], {"limit": 0}, []),
        ([4, 4, 4, 4], {}, [4]),  # a match may overlap the end, and never is the end itself
        ([1, 2, 3, 4], {}, []),
        ([1], {}, []),
    ],
)
def test_drafts_by_hand(tokens, settings, expected):
    assert drafted(tokens, **settings) == expected


def test_a_tree_follows_the_first_matches_with_an_equal_share_of_the_tokens():
    text = [2, 8, 5, 3, 2, 8, 6, 3, 2, 9, 7, 3, 2]
    drafter = PromptLookupDrafter(100, 100, ngram_length=1, draft_tokens=6, branches=2)
    assert drafter.draft_size == 7
    for options, tokens, parents in (
        ({"branches": 2}, [2, 8, 5, 3, 6, 3], [-1, 0, 1, 2, 1, 4]),  # 8 is drafted once
        ({"branches": 3}, [2, 8, 5, 6, 9, 7], [-1, 0, 1, 1, 0, 4]),
        ({"branches": 9}, [2, 8, 9], [-1, 0, 0]),
        ({"branches": 2, "limit": 1}, [2, 8], [-1, 0]),
    ):
        drafter = PromptLookupDrafter(100, 100, ngram_length=1, draft_tokens=6, branches=options["branches"])
        drafter.start(text, None, Greedy())
        tree = drafter.propose(options.get("limit", 100))
        assert (tree.tokens.tolist(), tree.parents.tolist()) == (tokens, parents)
        assert len(tree) <= drafter.draft_size


def test_a_match_may_have_to_be_longer_than_one_token():
    assert drafted([9, 3, 7, 2, 3, 8, 5, 2, 3], shortest_match=2) == [8, 5, 2, 3]
    assert drafted([9, 3, 7, 2, 3, 8, 5, 2, 3], shortest_match=3) == []


def test_what_was_taken_back_is_not_looked_up():
    drafter = PromptLookupDrafter(100, 100)
    drafter.start([1, 2, 3], None, Greedy())
    drafter.commit(3, [4, 1], None)
    assert drafter.propose(9).tokens.tolist() == [1, 2, 3, 4, 1]
    drafter.commit(2, [5, 1], None)
    assert drafter.propose(9).tokens.tolist() == [1, 2, 5, 1]
    drafter.start([6, 7], None, Greedy())
    assert drafter.propose(9).tokens.tolist() == [7]


def speculators(target, intermediate):
    """Below the target; below a small model; and of the shortest drafts."""
    return {
        "prompt lookup": Speculator(target, lookup(target)),
        "one token": Speculator(target, lookup(target, ngram_length=1, draft_tokens=1)),
        "hierarchy": Speculator(target, Speculator(intermediate, lookup(intermediate), min_draft_length=4)),
    }


@pytest.mark.parametrize("method", ["prompt lookup", "one token", "hierarchy"])
def test_greedy_decoding_is_lossless_in_one_pass_a_step(target, intermediate, method):
    speculator = speculators(target, intermediate)[method]
    lengths = [step.accepted_length for prompt in PROMPTS for step in lossless_steps(speculator, prompt, 60)]
    assert min(lengths) == 1  # drafts were rejected,
    assert max(lengths) > 1  # and drafts were accepted


def test_sampling_has_the_targets_joint_distribution():
    """Of few tokens, so that most of them stood before and are looked up."""
    target = random_model(VOCABULARY, layers=1, seed=7, scale=0.3, context_length=16)
    assert_targets_joint_distribution(target, Speculator(target, lookup(target)), draws=1500)
    small = perturbed(target, 0.3, seed=8)
    inner = Speculator(small, lookup(small), min_draft_length=2)
    assert_targets_joint_distribution(target, Speculator(target, inner), draws=600)


def test_sampling_accepts_and_rejects_drafts(target):
    speculator, shares, count = Speculator(target, lookup(target)), [], 1
    speculator.prefill(PROMPTS[1], Sampling(temperature=0.5, seed=1))
    while count < 80:
        step = speculator.step(80 - count)
        count += step.accepted_length
        if len(step.tree) > 1:
            shares.append(len(step.path) / (len(step.tree) - 1))
    assert min(shares) < 1
    assert max(shares) > 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ngram_length": 0}, "the n-gram length of prompt lookup is 0; it must be at least 1"),
        ({"draft_tokens": 0}, "the number of tokens that prompt lookup drafts is 0; it must be at least 1"),
        ({"branches": 0}, "the number of branches of prompt lookup is 0; it must be at least 1"),
        ({"shortest_match": 0}, "the shortest match of prompt lookup is 0; it must be at least 1"),
    ],
)
def test_bad_settings_are_one_sentence(settings, sentence):
    with pytest.raises(SpecquantError, match=f"^{sentence}$"):
        PromptLookupDrafter(100, 100, **settings)


def test_it_needs_no_companion_and_the_planner_measures_it(small_models):
    method = METHODS["prompt-lookup"]
    assert (method.companions, method.probes, method.place) == ((), (Plan("prompt-lookup"),), None)
    assert "prompt-lookup" not in PAPER_METHODS
    models = Models(small_models / "target")
    assert models.given_methods() == ["autoregressive", "prompt-lookup", "suffix"]
    drafter = models.speculator(Plan("prompt-lookup")).drafter
    assert (drafter.ngram_length, drafter.draft_tokens, drafter.needs_features) == (3, 10, False)
    assert drafter.vocab_size == models.target.config.vocab_size


def test_the_command_takes_it(capsys):
    target = str(project_root() / "data/tiny/target")
    prompt = "Question: Tom has 3 boxes with 4 apples each. How many apples does he have?\nAnswer:"
    told = []
    for method in ("autoregressive", "prompt-lookup"):
        command = ["generate", "--model", target, "--prompt", prompt, "--max-new-tokens", "32", "--json"]
        assert main([*command, "--method", method]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[1]["token_ids"] == told[0]["token_ids"]
    assert max(told[0]["accepted_lengths"]) == 1 < max(told[1]["accepted_lengths"])
    assert main(["generate", "--help"]) == 0
    assert "prompt-lookup" in "".join(capsys.readouterr().out.split())  # help breaks lines at hyphens
