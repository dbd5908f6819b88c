"""Stop conditions are exact, also where they fall in the middle of an accepted draft."""

import copy
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from specquant.decoding import Greedy, Speculator, acceptance_rule, decode_steps, generate, tokens_of
from specquant.decoding.generation import _Output
from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.models.loading import load_tokenizer

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


@pytest.mark.parametrize("most", [1, 2, 9, 10])
def test_steps_are_taken_when_they_are_asked_for_and_bring_no_more_than_was_said(drafting, expected, tokenizer, most):
    prompt = tokens_of("hello", tokenizer)
    steps = list(decode_steps(drafting, prompt, Greedy(), most))
    assert [token for step in steps for token in step.tokens] == expected.token_ids[:most]
    steps = decode_steps(drafting, prompt, Greedy(), most)
    assert next(steps).tokens == expected.token_ids[:1]
    assert drafting.tokens == [*prompt, expected.token_ids[0]]  # no step was taken yet


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

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


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


def llama_2_like():
    """Spaces in front of words, single bytes for what it lacks, and a decoder that strips the first space."""
    words = ["▁he", "llo", "▁", "▁wor", "ld", "é", "�", ".", "s"]
    names = ["<unk>", "<s>", "</s>", *words, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def metaspace():
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(["<s>", "▁", "▁a", "b", "▁▁", "c"])}, []))
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def byte_level():
    """All single bytes, a special token, and an added one that is none."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


TOKENIZERS = {"Llama 2": llama_2_like(), "Metaspace": metaspace(), "byte level": byte_level()}
LIKELY = {  # tokens that meet each other in unusual ways; the rest of the vocabulary comes, too
    "Llama 2": TOKENIZERS["Llama 2"].convert_tokens_to_ids(
        ["<s>", "</s>", "▁he", "llo", "▁", "▁wor", "ld", "<0xE6>", "<0x9D>", "<0xB1>", "<0x20>", "<0x0A>", "<0x61>"]
    ),
    "Metaspace": list(range(6)),
    "byte level": TOKENIZERS["byte level"].convert_tokens_to_ids([*"Ġaæ±ðŁ", "<|end|>", "<tool>"]),
}


def stopped_at(tokenizer, ids, stops):
    """How far tokens are taken, and the text then, by the plainest rule: after each token all are decoded again, and
    once more with special tokens. Behind a stop string that has one, the text is what comes before its first token."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        ends = [text.index(stop) for stop in stops if stop in text]
        last = tokenizer.convert_ids_to_tokens(ids[count - 1])
        ends += [len(text) for stop in stops if stop == last and stop in special]
        if ends:
            return count, text[: min(ends)]
    return len(ids), tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=1000)
def test_what_is_streamed_is_the_text_of_all_tokens_up_to_a_stop_string(kind, data):
    tokenizer = TOKENIZERS[kind]
    token = st.one_of(st.sampled_from(LIKELY[kind]), st.integers(0, len(tokenizer) + 3))
    ids = data.draw(st.lists(token, min_size=1, max_size=40))
    special = [added.content for added in tokenizer.added_tokens_decoder.values() if added.special]
    stop = st.one_of(st.sampled_from(["ll", " ", "\n\n", "o w", "aa", "東", "<tool>"]), st.sampled_from(special))
    stops = tuple(data.draw(st.lists(stop, max_size=2)))
    shown = []
    output = _Output(tokenizer, None, stops, len(ids), shown.append)
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=len(ids), max_size=len(ids)))
    taken = 0
    for size in sizes:
        if output.stopped_by:
            break
        taken += output.take(ids[taken : taken + size])
        assert output.text.startswith("".join(shown))
    output.finish()
    count, text = stopped_at(tokenizer, ids, stops)
    assert (taken, output.text, "".join(shown)) == (count, text, text)
    assert output.token_ids == ids[:count]


def test_a_token_without_a_name_ends_no_run_of_bytes():
    """As one that only pads a vocabulary: the bytes around it are read together."""
    tokenizer, shown = TOKENIZERS["Llama 2"], []
    ids = [*tokenizer.convert_tokens_to_ids(["<0x0A>"]), len(tokenizer) + 3]
    ids += tokenizer.convert_tokens_to_ids(["<0xE6>"])
    output = _Output(tokenizer, None, (), 99, shown.append)
    for token in ids:
        output.take([token])
    output.finish()
    assert "".join(shown) == output.text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("stop", "text"),
    [("<|end|>", "a"), ("a<|end|>", ""), ("<|end|>bc", "a"), ("a<|end|>b", ""), ("<|end|><|end|>", "abc"), ("bc", "a")],
)
def test_a_stop_string_may_hold_special_tokens(stop, text):
    tokenizer, shown = TOKENIZERS["byte level"], []
    ids = tokenizer.convert_tokens_to_ids(["a", "<|end|>", "b", "c", "<|end|>", "<|end|>", "a"])
    output = _Output(tokenizer, None, (stop,), 1000, shown.append)
    for token in ids:
        if not output.stopped_by:
            output.take([token])
    output.finish()
    assert (output.text, output.stopped_by) == (text, "stop string") == ("".join(shown), "stop string")


def test_a_prompt_that_begins_as_the_tokenizer_begins_one_is_left_as_it_is():
    tokenizer = load_tokenizer(TINY)
    plain = tokens_of("Hello", tokenizer)
    assert plain[0] == tokenizer.bos_token_id != plain[1]
    assert tokens_of("<|begin|>Hello", tokenizer) == plain
    assert tokens_of("<|begin|>Hello", tokenizer, special=False) == plain
    assert tokens_of("<|begin|><|begin|>Hello", tokenizer) == [plain[0], *plain]
    assert tokens_of("Hello", tokenizer, special=False) == plain[1:]
    assert tokens_of("<|begin|>", tokenizer) == tokens_of("", tokenizer) == plain[:1]


def test_a_tokenizer_that_also_ends_texts_still_ends_them():
    backend = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "a": 2}, []))
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokens_of("a", tokenizer) == tokens_of("<s>a", tokenizer) == [0, 2, 1]


@pytest.mark.parametrize(("prompt", "place"), [("caf\udce9", 4), ("\ud83d", 1)])
def test_a_prompt_that_is_no_text_is_refused(drafting, tokenizer, prompt, place):
    with pytest.raises(SpecquantError, match=f"the prompt is not valid text: its character {place} is "):
        generate(drafting, tokenizer, prompt)
    with pytest.raises(SpecquantError, match="a stop string is not valid text"):
        generate(drafting, tokenizer, "hello", stop_strings=(prompt,))


def overflowing(target, position):
    """A copy of the target whose keys are no numbers from a position on."""
    model = copy.deepcopy(target)
    model.rotary.cosines[position:] = torch.nan
    return model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("position", [0, 4, 12])  # in the prompt, in its last pass, and behind new tokens
def test_logits_that_are_no_numbers_are_no_text(target, tokenizer, position, temperature):
    """A model whose activations overflow in half precision would else write one token over and over."""
    speculator = Speculator(overflowing(target, position))
    with pytest.raises(SpecquantError, match="logits are no numbers: its activations overflow in float64, or its wei"):
        generate(speculator, tokenizer, "hello", max_new_tokens=20, rule=acceptance_rule(temperature))


class OverflowsInOnePass:
    """The target, but for one of its passes, whose logits are no numbers in some rows: its last layer overflows, which
    leaves nothing in the cache."""

    def __init__(self, target, where, rows=slice(None)):
        self.target, self.where, self.rows, self.passes = target, where, rows, 0

    def __getattr__(self, name):
        return getattr(self.target, name)

    def __call__(self, *inputs):
        return self.target(*inputs)

    def logits(self, features):
        self.passes += 1
        logits = self.target.logits(features).clone()
        if self.passes == self.where:
            logits[self.rows] = torch.nan
        return logits


@pytest.mark.parametrize("where", [1, 2, 5, 19])  # the prompt's pass, and steps
def test_one_pass_whose_logits_are_no_numbers_is_no_text_though_later_ones_are(target, tokenizer, where):
    shown = []
    with pytest.raises(SpecquantError, match="logits are no numbers"):
        generate(Speculator(OverflowsInOnePass(target, where)), tokenizer, "hello", 20, on_text=shown.append)
    assert len("".join(shown)) < where  # nothing of that pass was shown


def test_a_rejected_draft_that_overflows_is_no_reason_to_refuse_a_text(target, intermediate, tokenizer):
    expected = generate(Speculator(target), tokenizer, "hello", max_new_tokens=20)
    rejecting = Speculator(target, Speculator(intermediate, min_draft_length=4))
    steps = generate(rejecting, tokenizer, "hello", max_new_tokens=20).steps
    step = next(number for number, step in enumerate(steps) if len(step.path) < len(step.tree) - 1)
    overflows = OverflowsInOnePass(target, 2 + step, slice(-1, None))
    drafting = Speculator(overflows, Speculator(intermediate, min_draft_length=4))
    assert generate(drafting, tokenizer, "hello", max_new_tokens=20).token_ids == expected.token_ids
