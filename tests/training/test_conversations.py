"""What a chat template writes around turns, in tokens."""

import pytest
from transformers import LlamaConfig

from specquant.errors import SpecquantError
from specquant.training.conversations import SYSTEM_PROMPTS, Asked, Turns, turns_of

TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant: {% endif %}"
)
CONFIG = LlamaConfig(bos_token_id=0, eos_token_id=1)
TURNS = Turns(([5, 6], [7]), [1, 0, 8], [1, 0, 9], (1,))


def test_without_a_template_one_text_follows_another(tokenizer):
    assert turns_of(tokenizer, CONFIG) == Turns(([0],), [], [1, 0], (1,))


def test_what_stands_around_turns_is_the_template_s(tokenizer):
    tokenizer.chat_template = TEMPLATE
    turns = turns_of(tokenizer, CONFIG)
    assert len(turns.begins) == len(SYSTEM_PROMPTS)
    assert tokenizer.decode(turns.begins[0]) == "<|begin|>user: "
    assert tokenizer.decode(turns.begins[1]) == f"<|begin|>system: {SYSTEM_PROMPTS[1]}<|end|><|begin|>user: "
    assert tokenizer.decode(turns.to_answer) == "<|end|><|begin|>assistant: "
    assert tokenizer.decode(turns.to_user) == "<|end|><|begin|>user: "
    assert turns.ends == (1,)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "does not end turns by a special token"),
        ("{% for m in messages %}<|begin|>{{ m.content[:3] }}<|end|>{% endfor %}", "does not show every turn as it is"),
    ],
)
def test_other_templates_are_one_sentence(tokenizer, template, says):
    tokenizer.chat_template = template
    with pytest.raises(SpecquantError, match=says):
        turns_of(tokenizer, CONFIG)


def test_without_begin_and_end_there_is_no_text(tokenizer):
    with pytest.raises(SpecquantError, match="neither a chat template nor a begin token"):
        turns_of(tokenizer, LlamaConfig(bos_token_id=None, eos_token_id=None))


def test_beginnings():
    assert TURNS.beginning(None, 0, 20) == ([5, 6], True)
    assert TURNS.beginning(None, 1, 20) == ([7], True)
    assert TURNS.beginning(Asked([11, 12]), 1, 20) == ([7, 11, 12, 1, 0, 8], False)
    assert TURNS.beginning(Asked([11, 12], unfinished=True), 1, 20) == ([7, 11, 12], True)
    assert TURNS.beginning(Asked([11, 12, 13, 14, 15]), 1, 7) == ([7, 11, 14, 15, 1, 0, 8], False)
    assert Turns(([0],), [], [1, 0], (1,)).beginning(Asked([11], unfinished=True), 0, 9) == ([0, 11], False)
