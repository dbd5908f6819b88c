"""HumanEval: 164 functions to write, each judged by its tests (Chen et al. 2021, arXiv 2107.03374)."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from specquant.benchmarks.benchmark import GITHUB, Benchmark, Prompt, Question, text_field
from specquant.benchmarks.chat import chat_text
from specquant.benchmarks.sandbox import Limits, run_program, wall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# EvalPlus's form for instruction-tuned models (arXiv 2305.01210, github.com/evalplus/evalplus), which the scripts use.
CODE_REQUEST = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```\n{code}\n```\n"
)
CODE_ANSWER = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:\n"
    "```python\n"
)

# Where code ends that continues a function without any mark of its end (Chen et al. 2021, section 3.2).
AFTER_A_FUNCTION = re.compile(r"\n(?:class|def|#|if|print|@)")
# Where an answer in a code block ends: at the block, or at a trial of the function (as EvalPlus cuts it).
AFTER_A_SCRIPT = re.compile(r"\n(?:```|if __name__|def main\(|print\()")


def question(record: dict, number: int) -> Question:
    solution = {field: text_field(record, field) for field in ("prompt", "test", "entry_point")}
    if not solution["entry_point"].isidentifier():
        raise ValueError("entry_point is no function's name")
    return Question(text_field(record, "task_id"), "HumanEval", "code", (solution["prompt"],), solution)


def prompt(question: Question, answers: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    code = question.turns[0]
    if tokenizer.chat_template is None:
        return Prompt(code, True)
    here = "[the answer goes on here]"  # templates strip white space at a message's end, but not before this
    messages = [
        {"role": "user", "content": CODE_REQUEST.format(code=code.strip())},
        {"role": "assistant", "content": f"{CODE_ANSWER}{here}\n```\n"},
    ]
    return Prompt(chat_text(tokenizer, messages, False).split(here)[0], False)


def judge(question: Question, answer: str, unsafe: bool = False, limits: Limits | None = None) -> bool | None:
    """Whether the answer's program passes the tests; None where no sandbox can be made.

    unsafe: run it where no sandbox can be made, too. limits: for the program.
    """
    if not (wall() or unsafe):
        return None
    program, tests = program_of(question.solution, answer), tests_of(question.solution)
    return run_program(program, limits, tests, unsafe).passed


def program_of(solution: dict[str, str], answer: str) -> str:
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


def tests_of(solution: dict[str, str]) -> str:
    """The source that ends without an exception if a program solves a problem of HumanEval.

    It runs apart from the program. Of the prompt it has what the tests use beside the function that is asked for.
    """
    name = solution["entry_point"]
    return f"{solution['prompt']}\n    pass\n\n{name} = program.{name}\n\n{solution['test']}\n\ncheck({name})\n"


BENCHMARK = Benchmark(
    name="humaneval",
    file="HumanEval.jsonl.gz",
    url=f"{GITHUB}/openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d/data/HumanEval.jsonl.gz",
    sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    max_new_tokens=512,
    question=question,
    prompt=prompt,
    judge=judge,
    runs_programs=True,
)
