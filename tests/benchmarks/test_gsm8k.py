"""A sum's number is found in many forms and never guessed, and prompts show the paper's examples."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specquant.benchmarks import mt_bench
from specquant.benchmarks.benchmark import Question, read_questions
from specquant.benchmarks.gsm8k import BENCHMARK, EXAMPLES, final_number
from specquant.errors import SpecquantError
from tests.questions import first_question, prompt_of


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
    assert final_number(text) == Decimal(number)


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
    assert final_number(text) is None


@given(st.decimals(-(10**9), 10**9, places=2), st.sampled_from(["#### {}", "The answer is {}.", "It is ${} in all."]))
def test_every_number_is_read_back_with_thousands(number, form):
    assert final_number(form.format(f"{number:,}")) == number


@given(st.text())
def test_no_text_breaks_the_extraction(text):
    for form in (text, f"The answer is {text}", f"#### {text}"):
        assert final_number(form) is None or final_number(form).is_finite()


def test_the_examples_answers_are_read():
    for _, reasoning, answer in EXAMPLES:
        assert final_number(f" {reasoning} The answer is {answer}.\n\nQ: Next?") == int(answer)


def test_sums_are_right_or_wrong_and_conversations_neither(data_dir):
    seven, two_thousand = read_questions(BENCHMARK, data_dir)[0]
    assert BENCHMARK.is_right(seven, " 3 + 4 = 7. The answer is 7.") is True
    assert BENCHMARK.is_right(seven, " The answer is 7.0") is True
    assert BENCHMARK.is_right(seven, " The answer is 8.") is False
    assert BENCHMARK.is_right(seven, "") is False
    assert BENCHMARK.is_right(two_thousand, "The answer is $2,000.") is True
    assert mt_bench.BENCHMARK.is_right(first_question("mt-bench", data_dir), "7") is None
    with pytest.raises(SpecquantError, match="question 9 of GSM8K has no number after ####"):
        BENCHMARK.is_right(Question("9", "GSM8K", "", ("",), {"answer": "#### none"}), "7")


def test_gsm8k_shows_eight_examples_that_are_right_and_needs_no_template(data_dir, chat_tokenizer):
    text, special = prompt_of("gsm8k", data_dir, chat_tokenizer)
    assert special
    assert text.startswith("Q: There are 15 trees in the grove. Grove workers")
    assert text.count("Q: ") == text.count("\nA:") == 9
    assert text.count(" The answer is ") == 8
    assert text.endswith("\n\nQ: Ann has 3 pens and buys 4. How many has she?\nA:")
    assert [answer for *_, answer in EXAMPLES] == ["6", "5", "39", "8", "9", "29", "33", "8"]
    assert all(reasoning.rstrip(".").endswith(answer) or answer in reasoning for _, reasoning, answer in EXAMPLES)
