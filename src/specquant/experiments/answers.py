"""Whether an answer is right: GSM8K's by its number, HumanEval's by running it against its tests."""

import re
from decimal import Decimal

from specquant.errors import SpecquantError
from specquant.experiments.sandbox import Limits, run_program, wall
from specquant.experiments.tasks import Question

# A plain number, and behind it perhaps a unit without digits: 1,234.50 or 42kg or 18/day; not 3/4, 12:30, 1e5 or 3-4.
NUMBER = re.compile(r"(?P<number>[-+]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d+)?)(?:[-/]?[^\W\d]\D*|[%°]\D*)?", re.ASCII)
OPERATORS = frozenset("+-*/x^\N{MULTIPLICATION SIGN}\N{DIVISION SIGN}")

# Where code ends that continues a function without any mark of its end (Chen et al. 2021, section 3.2).
AFTER_A_FUNCTION = re.compile(r"\n(?:class|def|#|if|print|@)")
# Where an answer in a code block ends: at the block, or at a trial of the function (as EvalPlus cuts it).
AFTER_A_SCRIPT = re.compile(r"\n(?:```|if __name__|def main\(|print\()")


def is_right(question: Question, answer: str, limits: Limits | None = None, unsafe: bool = False) -> bool | None:
    """Whether an answer is right; None for benchmarks of conversations, which have no right answers, and for programs
    where no sandbox can be made.

    limits: for a program that is run. unsafe: run it where no sandbox can be made, too. Raises SpecquantError where a
    GSM8K question has no number for its answer.
    """
    if question.task == "GSM8K":
        expected = gsm8k_number(question.solution["answer"])
        if expected is None:
            raise SpecquantError(f"question {question.id} of GSM8K has no number after ####: fetch the file again")
        return gsm8k_number(answer) == expected
    if question.task == "HumanEval":
        if not (wall() or unsafe):
            return None
        program, tests = humaneval_program(question.solution, answer), humaneval_tests(question.solution)
        return run_program(program, limits, tests, unsafe).passed
    return None


def gsm8k_number(text: str) -> Decimal | None:
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


def humaneval_program(solution: dict[str, str], answer: str) -> str:
    """The source of the function that an answer to a problem of HumanEval is.

    solution: the problem's prompt and entry_point. answer: a script with the whole function, perhaps in a code
    block and with words around it, or the lines that continue the prompt.
    """
    code = answer.replace("\t", "    ")
    whole = re.search(rf"^(?:async )?def {re.escape(solution['entry_point'])}\b", code, re.MULTILINE)
    if whole:
        start = code.rfind("```", 0, whole.start())
        code = code[code.index("\n", start) + 1 :] if start >= 0 else code
        # The prompt stays for what it imports and defines; the answer's function takes the place of its empty one.
        code = f"\n    pass\n\n{AFTER_A_SCRIPT.split(code)[0]}"
    else:
        code = AFTER_A_FUNCTION.split(code.split("\n```")[0])[0]
    return f"{solution['prompt']}{code}\n"


def humaneval_tests(solution: dict[str, str]) -> str:
    """The source that ends without an exception if a program solves a problem of HumanEval.

    It runs apart from the program. Of the prompt it has what the tests use beside the function that is asked for.
    """
    name = solution["entry_point"]
    return f"{solution['prompt']}\n    pass\n\n{name} = program.{name}\n\n{solution['test']}\n\ncheck({name})\n"
