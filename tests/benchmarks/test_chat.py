"""Conversations have the form of the tokenizer's chat template, or of paragraphs."""

import pytest

from specquant.benchmarks.benchmark import prompt_tokens
from specquant.benchmarks.chat import SYSTEM_PROMPT, message_prompt
from specquant.benchmarks.mt_bench import BENCHMARK
from specquant.errors import SpecquantError
from tests.benchmarks.conftest import TEMPLATE
from tests.questions import first_question, prompt_of

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def test_the_second_turn_sees_the_first_answer(data_dir, chat_tokenizer):
    text, special = prompt_of("mt-bench", data_dir, chat_tokenizer, [" 5 \n"])
    assert text == (
        f"<|begin|><system>{SYSTEM_PROMPT}<|end|><user>2 plus 3 makes<|end|><assistant>5<|end|><user>And 4 plus<|end|>"
        "<assistant>"
    )
    assert not special
    assert prompt_of("mt-bench", data_dir, chat_tokenizer)[0].endswith("<user>2 plus 3 makes<|end|><assistant>")


def test_the_template_brings_the_only_begin_token(data_dir, chat_tokenizer):
    tokens, _ = prompt_tokens(BENCHMARK, first_question("mt-bench", data_dir), [], chat_tokenizer, 10_000)
    assert tokens.count(chat_tokenizer.bos_token_id) == 1
    assert tokens[0] == chat_tokenizer.bos_token_id


def test_where_a_template_knows_no_system_role_the_user_says_it(data_dir, chat_tokenizer):
    chat_tokenizer.chat_template = NO_SYSTEM
    text, _ = prompt_of("mt-bench", data_dir, chat_tokenizer)
    assert text == f"<|begin|><user>{SYSTEM_PROMPT}\n\n2 plus 3 makes<|end|><assistant>"
    chat_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(SpecquantError, match="template refuses the conversation: roles must alternate"):
        prompt_of("mt-bench", data_dir, chat_tokenizer)


def test_without_a_template_conversations_are_paragraphs(data_dir, tokenizer):
    assert prompt_of("mt-bench", data_dir, tokenizer, ["5"]) == ("2 plus 3 makes\n\n5\n\nAnd 4 plus\n\n", True)
    assert prompt_of("mt-bench", data_dir, tokenizer) == ("2 plus 3 makes\n\n", True)


def test_one_text_is_a_users_message_or_itself(chat_tokenizer, tokenizer):
    assert message_prompt("2 plus 3 makes", chat_tokenizer) == (
        "<|begin|><user>2 plus 3 makes<|end|><assistant>",
        False,
    )
    assert message_prompt("2 plus 3 makes", tokenizer) == ("2 plus 3 makes", True)
