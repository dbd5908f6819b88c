"""Small files of the benchmarks, and a tokenizer with a chat template."""

import pytest

from specquant.models.loading import load_tokenizer
from tests.questions import write_questions

# The form of Llama 3's: a head for each message, white space stripped, an end after it.
TEMPLATE = (
    "{{ '<|begin|>' }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def data_dir(tmp_path):
    return write_questions(tmp_path / "benchmarks")


@pytest.fixture
def chat_tokenizer(small_models):
    tokenizer = load_tokenizer(small_models / "target")
    tokenizer.chat_template = TEMPLATE
    return tokenizer
