"""Programs are asked for in the form of the paper's scripts, and judged by their tests."""

import pytest

from specquant.benchmarks import humaneval, sandbox
from specquant.benchmarks.benchmark import Question
from specquant.benchmarks.humaneval import BENCHMARK, judge
from specquant.benchmarks.sandbox import Limits, why_no_wall
from tests.questions import SUM, first_question, prompt_of


def test_a_program_is_asked_for_and_begun_or_continued(data_dir, chat_tokenizer, tokenizer):
    text, special = prompt_of("humaneval", data_dir, chat_tokenizer)
    assert f"```\n{SUM['prompt'].strip()}\n```<|end|><assistant>" in text
    assert text.endswith("passes corresponding tests:\n```python\n")
    assert not special
    assert prompt_of("humaneval", data_dir, tokenizer) == (SUM["prompt"], True)


@pytest.fixture
def question(data_dir):
    return first_question("humaneval", data_dir)


@pytest.fixture
def walled():
    if why_no_wall():
        pytest.skip(why_no_wall())


BODY = SUM["canonical_solution"]
WHOLE = SUM["prompt"] + BODY


@pytest.mark.parametrize(
    "answer",
    [
        BODY,
        BODY + "\n\ndef other(:",
        BODY + "\nprint(whole('x'))",
        BODY + "\n```\nThis floors x.",
        BODY.replace("    ", "\t"),
        WHOLE + "\n```\n\nThis floors x.",
        f"Here it is:\n```python\n{WHOLE}\n```\nIt floors x.",
        f"First:\n```\nnonsense(\n```\nBetter:\n```py\n{WHOLE}\n```",
        WHOLE + "\n\nif __name__ == '__main__':\n    1 / 0",
        WHOLE + "\nprint(whole('x'))",
        "def whole(x):\n    return helper(x)\n\ndef helper(x):\n    return int(x)",
        "def whole(x):\n    return floor(x)",  # imported by the prompt
    ],
)
def test_right_programs_pass_in_every_form(question, answer, walled):
    assert BENCHMARK.is_right(question, answer) is True


WRONG = (
    "",
    "    return x",
    "    raise SystemExit",
    "    exit(0)",
    "I cannot.",
    "def whole(y):\n    pass",
    "    while 1: 0",
)


@pytest.mark.parametrize("answer", WRONG)
def test_wrong_programs_fail(question, answer, walled):
    assert judge(question, answer, limits=Limits(wall_s=2, cpu_s=1)) is False


@pytest.mark.parametrize(
    "answer",
    [
        "def whole(x):\n    pass\n\ndef check(candidate):\n    pass",
        "class All:\n    def __eq__(self, other):\n        return True\n\ndef whole(x):\n    return All()",
        "import os\ndef whole(x):\n    os._exit(0)",
        "import builtins\nbuiltins.AssertionError = None\ndef whole(x):\n    return x",
    ],
)
def test_an_answer_cannot_replace_its_tests_or_claim_to_have_passed(question, answer, walled):
    assert BENCHMARK.is_right(question, answer) is False


@pytest.mark.parametrize(("body", "right"), [("    return encode(x)[::-1]", True), ("    return x", False)])
def test_tests_may_use_what_the_prompt_defines_and_the_answer_by_its_name(body, right, walled):
    prompt = 'def encode(x):\n    return x + "!"\n\n\ndef decode(x):\n    """Reverse what encode does."""\n'
    test = 'def check(candidate):\n    assert candidate("a") == encode("a")[::-1] == decode("a")\n'
    question = Question("1", "HumanEval", "code", (prompt,), {"prompt": prompt, "test": test, "entry_point": "decode"})
    assert BENCHMARK.is_right(question, body) is right


def test_without_a_sandbox_programs_are_not_judged_but_by_choice(question, monkeypatch):
    for module in (humaneval, sandbox):
        monkeypatch.setattr(module, "wall", lambda: None)
    assert BENCHMARK.is_right(question, BODY) is None
    assert BENCHMARK.is_right(question, BODY, unsafe=True) is True
    assert BENCHMARK.is_right(question, "    return x", unsafe=True) is False
