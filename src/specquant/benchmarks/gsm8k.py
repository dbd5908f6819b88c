"""GSM8K's test set: 1,319 sums in words, each judged by its number (Cobbe et al. 2021, arXiv 2110.14168)."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from specquant.benchmarks.benchmark import GITHUB, Benchmark, Prompt, Question, text_field
from specquant.errors import SpecquantError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A plain number, and behind it perhaps a unit without digits: 1,234.50 or 42kg or 18/day; not 3/4, 12:30, 1e5 or 3-4.
NUMBER = re.compile(r"(?P<number>[-+]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d+)?)(?:[-/]?[^\W\d]\D*|[%°]\D*)?", re.ASCII)
OPERATORS = frozenset("+-*/x^\N{MULTIPLICATION SIGN}\N{DIVISION SIGN}")

# The eight examples of Wei et al. 2022, Chain-of-Thought Prompting (arXiv 2201.11903, appendix, prompts for math word
# problems): question, reasoning, answer.
EXAMPLES = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
        "there will be 21 trees. How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have "
        "been 21 - 15 = 6.",
        "6",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5.",
        "5",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, "
        "they had 74 - 35 = 39.",
        "39",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did "
        "Jason give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8.",
        "8",
    ),
    (
        "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he have "
        "now?",
        "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 = 9.",
        "9",
    ),
    (
        "There were nine computers in the server room. Five more computers were installed each day, from monday to "
        "thursday. How many computers are now in the server room?",
        "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 computers "
        "were added. 9 + 20 is 29.",
        "29",
    ),
    (
        "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How many golf "
        "balls did he have at the end of wednesday?",
        "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 more, "
        "he had 35 - 2 = 33 golf balls.",
        "33",
    ),
    (
        "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 dollars "
        "left. 23 - 15 is 8.",
        "8",
    ),
)


def question(record: dict, number: int) -> Question:
    answer = text_field(record, "answer")
    if not _has_digit(answer.partition("####")[2]):
        raise ValueError("the answer has no number behind ####")
    return Question(str(number), "GSM8K", "mathematics", (text_field(record, "question"),), {"answer": answer})


def prompt(question: Question, answers: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    """Plain text for every model, instruction-tuned or not: so do the authors' scripts."""
    examples = "".join(f"Q: {asked}\nA: {why} The answer is {answer}.\n\n" for asked, why, answer in EXAMPLES)
    return Prompt(f"{examples}Q: {question.turns[0]}\nA:", True)


def judge(question: Question, answer: str, unsafe: bool = False) -> bool:
    """Whether the answer ends in the number of the solution. Raises SpecquantError where the solution has none."""
    expected = final_number(question.solution["answer"])
    if expected is None:
        raise SpecquantError(f"question {question.id} of GSM8K has no number after ####: fetch the file again")
    return final_number(answer) == expected


def final_number(text: str) -> Decimal | None:
    """The number that a worked sum ends in; None where it ends in none, or in a fraction or expression instead.

    The answer follows "####" (the form of the data) or else the first "the answer is" (the form of the examples); where
    there is neither, it is the last number. What follows a new "Q:" was not asked for.
    """
    text = re.split(r"\n\s*Q:", text)[0].replace("\N{MINUS SIGN}", "-").replace("\\boxed", "")
    before, *after = re.split(r"####|the (?:final )?answer is", text, maxsplit=1, flags=re.IGNORECASE)
    if not after:
        words = re.split(r"\s+|=", before)
        return _plain_number(words, max((i for i, word in enumerate(words) if _has_digit(word)), default=None))
    sentences = re.split(r"\.(?:\s|$)|\n", after[0])
    sentence = next(filter(_has_digit, sentences), "")
    words = sentence.rpartition("=")[2].split()  # "10 - 4 = 6"
    return _plain_number(words, next((i for i, word in enumerate(words) if _has_digit(word)), None))


def _has_digit(text: str) -> bool:
    return any("0" <= character <= "9" for character in text)


def _plain_number(words: list[str], at: int | None) -> Decimal | None:
    """The number that the word at a position is, unless it is only a part of what stands there."""
    if at is None:
        return None
    word = re.sub(r"[$€£\\{}]", "", words[at]).strip("*_\"'`()[]").rstrip(".,;:!?*_\"'`()[]")
    found = NUMBER.fullmatch(word)
    if not found or not _has_digit(found["number"]):
        return None
    number = Decimal(found["number"].replace(",", ""))
    previous, earlier = ([""] * 2 + words[:at])[:-3:-1]
    following, later = (words[at + 1 :] + [""] * 2)[:2]
    if (previous in OPERATORS and _has_digit(earlier)) or (following in OPERATORS and _has_digit(later)):
        return None  # 10 - 4
    if "0" <= following[:1] <= "9":
        return None  # 1 1/2
    return -number if previous == "-" else number


BENCHMARK = Benchmark(
    name="gsm8k",
    file="gsm8k_test.jsonl",
    url=f"{GITHUB}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/test.jsonl",
    sha256="3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    max_new_tokens=256,
    question=question,
    prompt=prompt,
    judge=judge,
)
