"""Stop conditions are exact, also where they fall in the middle of an accepted draft."""

from random import Random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specquant.decoding import Greedy, Speculator, acceptance_rule, generate
from specquant.decoding.generation import _Output
from specquant.errors import SpecquantError
from specquant.models.loading import load_tokenizer
from specquant.paths import resolve

TINY = resolve("data/tiny/target")

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789."


@pytest.fixture(scope="module")
def tokenizer():
    """One token a character: the 37 that the random models know."""
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(CHARACTERS)}, []))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="module")
def drafting(target):
    """The target drafts for itself: every draft is accepted whole, so stops fall into the middle of drafts."""
    return Speculator(target, Speculator(target, min_draft_length=6))


@pytest.fixture(scope="module")
def expected(target, tokenizer):
    return generate(Speculator(target), tokenizer, "hello", max_new_tokens=40)


def same(a, b):
    return (a.token_ids, a.text, a.stopped_by) == (b.token_ids, b.text, b.stopped_by)


@pytest.mark.parametrize("count", range(1, 17))
def test_the_maximum_of_new_tokens_is_exact(drafting, tokenizer, expected, count):
    generation = generate(drafting, tokenizer, "hello", max_new_tokens=count)
    assert generation.token_ids == expected.token_ids[:count]
    assert generation.stopped_by == "maximum new tokens"
    assert sum(generation.accepted_lengths) == count - 1
    assert (generation.tokens_per_s is None) == (count == 1)


def test_accepted_lengths_count_the_added_token(drafting, tokenizer):
    assert generate(drafting, tokenizer, "hello", max_new_tokens=1 + 7 + 7 + 3).accepted_lengths == [7, 7, 3]


def test_an_end_token_stops_within_a_draft(target, drafting, tokenizer, expected, monkeypatch):
    for end in sorted(set(expected.token_ids)):
        monkeypatch.setattr(target.config, "eos_token_id", [end])
        alone = generate(Speculator(target), tokenizer, "hello", max_new_tokens=40)
        assert same(generate(drafting, tokenizer, "hello", max_new_tokens=40), alone)
        assert alone.token_ids == expected.token_ids[: expected.token_ids.index(end) + 1]
        assert alone.stopped_by == "end token"


def test_a_stop_string_ends_the_text_before_it(drafting, tokenizer, expected):
    for start in range(len(expected.text) - 3):
        stop = expected.text[start : start + 3]
        at = expected.text.index(stop)
        shown = []
        generation = generate(
            drafting, tokenizer, "hello", max_new_tokens=40, stop_strings=(stop,), on_text=shown.append
        )
        assert generation.text == expected.text[:at] == "".join(shown)
        assert generation.token_ids == expected.token_ids[: at + 3]
        assert generation.stopped_by == "stop string"


def test_streamed_text_is_the_text(drafting, tokenizer, expected):
    shown = []
    generate(drafting, tokenizer, "hello", max_new_tokens=40, stop_strings=("never",), on_text=shown.append)
    assert "".join(shown) == expected.text
    assert len(shown) > 3


def test_the_context_ends_generation(target, drafting, tokenizer):
    prompt = "ab" * 44  # 88 of 96 positions
    generation = generate(drafting, tokenizer, prompt, max_new_tokens=40)
    assert len(generation.token_ids) == 8
    assert generation.stopped_by == "context"
    assert same(generation, generate(Speculator(target), tokenizer, prompt, max_new_tokens=40))


def test_sampling_depends_on_the_seed_alone(drafting, tokenizer):
    def sample(seed):
        return generate(drafting, tokenizer, "hello", 20, acceptance_rule(1.0, 0.9, seed)).token_ids

    assert sample(1) == sample(1) != sample(2)


@pytest.mark.parametrize("values", [(-1.0, 1.0, 0), (0.0, 0.0, 0), (0.0, 1.1, 0), (0.0, 1.0, 2**64)])
def test_impossible_sampling_is_refused_also_for_greedy_decoding(values):
    with pytest.raises(SpecquantError):
        acceptance_rule(*values)


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ("", {}, "empty"),
        ("hello", {"max_new_tokens": 0}, "at least 1"),
        ("hello", {"max_new_tokens": -1}, "at least 1"),
        ("a" * 96, {}, "96 tokens and the context is 96"),
        ([1, 37], {}, "tokens 1 to 37 and the model's vocabulary 37"),
        ([-1], {}, "use the tokenizer that the model was trained with"),
        ("hello", {"stop_strings": ("",)}, "stop string is empty"),
    ],
)
def test_bad_input_is_refused_before_any_work(drafting, tokenizer, prompt, options, says):
    with pytest.raises(SpecquantError, match=says):
        generate(drafting, tokenizer, prompt, rule=Greedy(), **options)


def test_no_distribution_outlives_its_step(drafting, tokenizer):
    generation = generate(drafting, tokenizer, "hello", max_new_tokens=12, rule=acceptance_rule(1.0))
    assert generation.steps
    assert all(step.q is None and step.tree.q is None for step in generation.steps)


class Counting:
    """A tokenizer that notes how many tokens it decodes at once."""

    def __init__(self, tokenizer):
        self.tokenizer, self.lengths = tokenizer, []

    def decode(self, token_ids, **options):
        self.lengths.append(len(token_ids))
        return self.tokenizer.decode(token_ids, **options)


@pytest.mark.parametrize("seed", range(8))
def test_text_decoded_in_windows_is_the_text(seed):
    """Also where tokens hold parts of characters, and where these never become whole."""
    tokenizer = load_tokenizer(TINY)
    ids = tokenizer("naïve — 東京 🦙🦙 ends", add_special_tokens=False)["input_ids"] * 4
    ids = ids if seed == 0 else Random(seed).choices(range(4096), k=90)
    counting = Counting(tokenizer)
    output = _Output(counting, None, (), 1000, lambda text: None)
    for place, token in enumerate(ids, start=1):
        output.take([token])
        assert output.text == tokenizer.decode(ids[:place], skip_special_tokens=True)
    assert max(counting.lengths) < len(ids) / 2
