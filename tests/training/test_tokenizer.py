import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from specquant.training.tokenizer import BEGIN, BEGIN_ID, END, END_ID, train_tokenizer

TEXTS = ["def area(width, height):\n    return width * height\n", "The weather was fair, and the sea was calm.\n"] * 9


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A trained tokenizer as AutoTokenizer loads it beside a Llama's config."""
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, vocabulary_size=300, context_length=64).save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(directory)


def test_special_tokens(tokenizer):
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BEGIN_ID, END_ID) == (0, 1)
    assert tokenizer.convert_ids_to_tokens([0, 1]) == [BEGIN, END]
    assert len(tokenizer) == 300


def test_every_text_begins_and_none_ends(tokenizer):
    ids = tokenizer("the sea")["input_ids"]
    assert ids[0] == BEGIN_ID
    assert END_ID not in ids
    assert tokenizer("the sea", add_special_tokens=False)["input_ids"] == ids[1:]


@given(st.text())
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"][1:]) == text


def test_digits_are_single_tokens(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("2025")["input_ids"][1:]) == ["2", "0", "2", "5"]


def test_it_learns_words(tokenizer):
    assert len(tokenizer(TEXTS[0])["input_ids"]) < len(TEXTS[0]) / 2
