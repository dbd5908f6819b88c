"""An answer's number is found in many forms and never guessed; programs are judged by their tests."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specquant.errors import SpecquantError
from specquant.experiments import answers, sandbox
from specquant.experiments.answers import gsm8k_number, is_right
from specquant.experiments.sandbox import Limits, why_no_wall
from specquant.experiments.tasks import BENCHMARKS, GSM8K_EXAMPLES, Question, read_questions
from tests.questions import SUM, write_questions


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = <<3+4=7>>7\n#### 7", 7),
        ("#### -2,125", -2125),
        ("#### 18.00", 18),
        ("The answer is 6.", 6),
        ("So 5 are left. The answer is $1,234.50.", "1234.5"),
        ("the answer is 42", 42),
        ("The final answer is: 42.", 42),
        ("The answer is\n\n42\n", 42),
        ("The answer is -5.", -5),
        ("The answer is \N{MINUS SIGN}5.", -5),
        ("The answer is - 5.", -5),
        ("The answer is -$5.", -5),
        ("The answer is $-5.", -5),
        ("The answer is 10 - 4 = 6.", 6),
        ("The answer is x = 5", 5),
        ("The answer is **42**.", 42),
        ("The answer is $\\boxed{1,000}$.", 1000),
        ("The answer is 50%.", 50),
        ("The answer is 42kg.", 42),
        ("The answer is 18/day", 18),
        ("The answer is 7 apples, not 8.", 7),
        ("The answer is (7).", 7),
        ("The answer is 1,234,567.", 1234567),
        ("The answer is .5", "0.5"),
        ("The answer is about forty. To be exact, 41.", 41),
        ("The answer is 5.\n\nQ: What is 3 + 3?\nA: 3 + 3 = 6. The answer is 6.", 5),
        ("The answer is 5. Some say the answer is 6.", 5),
        ("I had 9 and gave away 2, so I have 7.", 7),
        ("9 - 2 = 7", 7),
        ("In total $1,000.\n\nQ: And 3?\nA: 3.", 1000),
    ],
)
def test_numbers_in_many_forms(text, number):
    assert gsm8k_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I do not know.",
        "The answer is",
        "The answer is forty-two.",
        "The answer is 3/4.",
        "The answer is 1 1/2 cups.",
        "The answer is \\frac{3}{4}.",
        "The answer is 12:30.",
        "The answer is 1e5.",
        "The answer is 3-4.",
        "The answer is 10 - 4.",
        "The answer is 5*3.",
        "The answer is 5 x 3.",
        "The answer is 1,23.",
        "The answer is 1.234,50.",
        "The answer is 2^3.",
        "#### ",
        "That makes 3/4",
        "That makes 10 - 4",
    ],
)
def test_what_is_no_plain_number_is_not_made_one(text):
    assert gsm8k_number(text) is None


@given(st.decimals(-(10**9), 10**9, places=2), st.sampled_from(["#### {}", "The answer is {}.", "It is ${} in all."]))
def test_every_number_is_read_back_with_thousands(number, form):
    assert gsm8k_number(form.format(f"{number:,}")) == number


@given(st.text())
def test_no_text_breaks_the_extraction(text):
    for form in (text, f"The answer is {text}", f"#### {text}"):
        assert gsm8k_number(form) is None or gsm8k_number(form).is_finite()


def test_the_examples_answers_are_read():
    for _, reasoning, answer in GSM8K_EXAMPLES:
        assert gsm8k_number(f" {reasoning} The answer is {answer}.\n\nQ: Next?") == int(answer)


@pytest.fixture
def questions(tmp_path):
    write_questions(tmp_path)
    return lambda name: read_questions(BENCHMARKS[name], tmp_path)[0]


def test_sums_are_right_or_wrong_and_conversations_neither(questions):
    seven, two_thousand = questions("gsm8k")
    assert is_right(seven, " 3 + 4 = 7. The answer is 7.") is True
    assert is_right(seven, " The answer is 7.0") is True
    assert is_right(seven, " The answer is 8.") is False
    assert is_right(seven, "") is False
    assert is_right(two_thousand, "The answer is $2,000.") is True
    assert is_right(questions("mt-bench")[0], "7") is None
    with pytest.raises(SpecquantError, match="question 9 of GSM8K has no number after ####"):
        is_right(Question("9", "GSM8K", "", ("",), {"answer": "#### none"}), "7")


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
def test_right_programs_pass_in_every_form(questions, answer, walled):
    assert is_right(questions("humaneval")[0], answer) is True


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
def test_wrong_programs_fail(questions, answer, walled):
    assert is_right(questions("humaneval")[0], answer, Limits(wall_s=2, cpu_s=1)) is False


@pytest.mark.parametrize(
    "answer",
    [
        "def whole(x):\n    pass\n\ndef check(candidate):\n    pass",
        "class All:\n    def __eq__(self, other):\n        return True\n\ndef whole(x):\n    return All()",
        "import os\ndef whole(x):\n    os._exit(0)",
        "import builtins\nbuiltins.AssertionError = None\ndef whole(x):\n    return x",
    ],
)
def test_an_answer_cannot_replace_its_tests_or_claim_to_have_passed(questions, answer, walled):
    assert is_right(questions("humaneval")[0], answer) is False


@pytest.mark.parametrize(("body", "right"), [("    return encode(x)[::-1]", True), ("    return x", False)])
def test_tests_may_use_what_the_prompt_defines_and_the_answer_by_its_name(body, right, walled):
    prompt = 'def encode(x):\n    return x + "!"\n\n\ndef decode(x):\n    """Reverse what encode does."""\n'
    test = 'def check(candidate):\n    assert candidate("a") == encode("a")[::-1] == decode("a")\n'
    question = Question("1", "HumanEval", "code", (prompt,), {"prompt": prompt, "test": test, "entry_point": "decode"})
    assert is_right(question, body) is right


def test_without_a_sandbox_programs_are_not_judged_but_by_choice(questions, monkeypatch):
    for module in (answers, sandbox):
        monkeypatch.setattr(module, "wall", lambda: None)
    question = questions("humaneval")[0]
    assert is_right(question, BODY) is None
    assert is_right(question, BODY, unsafe=True) is True
    assert is_right(question, "    return x", unsafe=True) is False
