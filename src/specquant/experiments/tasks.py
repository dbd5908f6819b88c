"""The benchmarks of the paper: their questions, read from files as published, and the prompts made of them.

What the paper's text leaves open (system prompt, forms of prompts, most new tokens) is taken from its authors'
evaluation scripts (github.com/AI9Stars/SpecMQuant, folders evaluation and scripts/eval). That the published numbers
were measured with exactly these scripts is assumed.
"""

import gzip
import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from specquant.decoding import tokens_of
from specquant.errors import SpecquantError
from specquant.files import resolve

# Spec-Bench's eight categories of conversations are MT-Bench's; each of the other five is a task of its own.
CONVERSATIONS = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
SPEC_BENCH_TASKS = dict.fromkeys(CONVERSATIONS, "multi-turn conversation") | {
    "translation": "translation",
    "summarization": "summarization",
    "qa": "question answering",
    "math_reasoning": "mathematical reasoning",
    "rag": "retrieval-augmented generation",
}

# Llama 2's default system prompt (arXiv 2307.09288, appendix A.3.3), which the scripts send to every model.
SYSTEM_PROMPT = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)

# EvalPlus's form for instruction-tuned models (arXiv 2305.01210, github.com/evalplus/evalplus), which the scripts use.
CODE_REQUEST = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```\n{code}\n```\n"
)
CODE_ANSWER = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:\n"
    "```python\n"
)

# The eight examples of Wei et al. 2022, Chain-of-Thought Prompting (arXiv 2201.11903, appendix, prompts for math word
# problems): question, reasoning, answer.
GSM8K_EXAMPLES = (
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


@dataclass(frozen=True)
class Question:
    """One question of a benchmark: what the user says, turn by turn, and the fields that its answer is judged by."""

    id: str
    task: str
    category: str
    turns: tuple[str, ...]
    solution: dict[str, str]


@dataclass(frozen=True)
class Benchmark:
    """A set of questions. file, url, sha256: of the file as its authors published it, at a fixed commit.

    max_new_tokens: the most in one turn, of the authors' scripts: 1024 is their default, the others stand in their
    scripts for the 8B model. question: from one line of the file, and its number. prompt: of a question and the answers
    to its first turns, as text; it says whether the tokenizer adds its special tokens.
    """

    name: str
    file: str
    url: str
    sha256: str
    max_new_tokens: int
    question: Callable[[dict, int], Question]
    prompt: Callable[[Question, Sequence[str], PreTrainedTokenizerBase], tuple[str, bool]]


def read_questions(benchmark: Benchmark, data_dir: str | Path, limit: int | None = None) -> tuple[list[Question], str]:
    """The questions in a benchmark's file, and the file's SHA-256. A relative folder is below the project root.

    limit: take at most so many of each task, spread evenly over the file. Raises SpecquantError where the file is
    missing or damaged, or a line is no question of this benchmark.
    """
    if limit is not None and limit < 1:
        raise SpecquantError(f"the limit is {limit} questions of each task; it must be at least 1")
    path = resolve(data_dir) / benchmark.file
    fetch = f"specquant data fetch {benchmark.name} --data-dir {data_dir}"
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except FileNotFoundError:
        raise SpecquantError(f"there is no {benchmark.file} in {data_dir}: get it by `{fetch}`") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SpecquantError(f"{path} is damaged ({error}): get it again by `{fetch}`") from None
    tasks: dict[str, list[Question]] = defaultdict(list)
    ids = set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            question = benchmark.question(json.loads(line), number)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SpecquantError(
                f"{path}, line {number}: no question of {benchmark.name} ({type(error).__name__}: {error}): get the "
                f"file again by `{fetch}`"
            ) from None
        if question.id in ids:
            raise SpecquantError(f"{path}, line {number}: question {question.id} is there twice")
        ids.add(question.id)
        tasks[question.task].append(question)
    if not ids:
        raise SpecquantError(f"{path} holds no question: get it again by `{fetch}`")
    return [question for some in tasks.values() for question in _spread(some, limit)], hashlib.sha256(
        content
    ).hexdigest()


def prompt_tokens(
    benchmark: Benchmark,
    question: Question,
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
) -> tuple[list[int], int]:
    """The prompt of the turn that follows `answers`, and how many tokens were cut from its middle to fit `longest`."""
    text, special = benchmark.prompt(question, answers, tokenizer)
    tokens = tokens_of(text, tokenizer, special)
    cut = max(0, len(tokens) - longest)
    if cut:  # its beginning holds the template's head, its end the question
        tokens = tokens[: longest // 2] + tokens[len(tokens) - (longest - longest // 2) :]
    return tokens, cut


def _spread(questions: list[Question], limit: int | None) -> list[Question]:
    count = min(limit or len(questions), len(questions))
    return [questions[i * len(questions) // count] for i in range(count)]


def is_text(value: object) -> bool:
    """Whether a value of a JSON file is a text that says something and that a file can hold: escapes in JSON can stand
    for half a character."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def _turns(record: dict) -> tuple[str, ...]:
    turns = record["turns"]
    if not isinstance(turns, list) or not turns or not all(map(is_text, turns)):
        raise ValueError("turns is no list of texts")
    return tuple(turns)


def _text(record: dict, field: str) -> str:
    if not is_text(record[field]):
        raise ValueError(f"{field} is no text")
    return record[field]


def _id(record: dict) -> str:
    number = record["question_id"]
    if isinstance(number, bool) or not (isinstance(number, int) or is_text(number)):
        raise ValueError("question_id is no whole number")
    return str(number)


def _mt_bench_question(record: dict, number: int) -> Question:
    return Question(_id(record), "MT-Bench", _text(record, "category"), _turns(record), {})


def _spec_bench_question(record: dict, number: int) -> Question:
    category = _text(record, "category")
    return Question(_id(record), SPEC_BENCH_TASKS[category], category, _turns(record), {})


def _humaneval_question(record: dict, number: int) -> Question:
    solution = {field: _text(record, field) for field in ("prompt", "test", "entry_point")}
    if not solution["entry_point"].isidentifier():
        raise ValueError("entry_point is no function's name")
    return Question(_text(record, "task_id"), "HumanEval", "code", (solution["prompt"],), solution)


def _gsm8k_question(record: dict, number: int) -> Question:
    answer = _text(record, "answer")
    if not any("0" <= character <= "9" for character in answer.partition("####")[2]):
        raise ValueError("the answer has no number behind ####")
    return Question(str(number), "GSM8K", "mathematics", (_text(record, "question"),), {"answer": answer})


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], open_answer: bool) -> str:
    """A conversation in the form of the tokenizer's chat template, special tokens included; open_answer: up to where
    the model answers. Raises SpecquantError where the template refuses it."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_answer)
    except TemplateError as error:
        if messages[0]["role"] != "system":
            raise SpecquantError(f"the tokenizer's chat template refuses the conversation: {error}") from None
    # Templates without a system role (Mistral's first): the first user says it.
    system, first, *rest = messages
    return chat_text(tokenizer, [first | {"content": f"{system['content']}\n\n{first['content']}"}, *rest], open_answer)


def _conversation_prompt(question: Question, answers: Sequence[str], tokenizer) -> tuple[str, bool]:
    asked = question.turns[: len(answers) + 1]
    if tokenizer.chat_template is None:
        said = [text for turn, answer in zip(asked, answers, strict=False) for text in (turn, answer.strip())]
        return "\n\n".join([*said, asked[-1], ""]), True
    messages = [{"role": "system", "content": SYSTEM_PROMPT}]
    for turn, answer in zip(asked, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer.strip()}]
    return chat_text(tokenizer, [*messages, {"role": "user", "content": asked[-1]}], True), False


def _humaneval_prompt(question: Question, answers: Sequence[str], tokenizer) -> tuple[str, bool]:
    code = question.turns[0]
    if tokenizer.chat_template is None:
        return code, True
    here = "[the answer goes on here]"  # templates strip white space at a message's end, but not before this
    messages = [
        {"role": "user", "content": CODE_REQUEST.format(code=code.strip())},
        {"role": "assistant", "content": f"{CODE_ANSWER}{here}\n```\n"},
    ]
    return chat_text(tokenizer, messages, False).split(here)[0], False


def _gsm8k_prompt(question: Question, answers: Sequence[str], tokenizer) -> tuple[str, bool]:
    """Plain text for every model, instruction-tuned or not: so do the authors' scripts."""
    examples = "".join(f"Q: {asked}\nA: {why} The answer is {answer}.\n\n" for asked, why, answer in GSM8K_EXAMPLES)
    return f"{examples}Q: {question.turns[0]}\nA:", True


_GITHUB = "https://raw.githubusercontent.com"
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(  # Zheng et al. 2023, arXiv 2306.05685
            "mt-bench",
            "mt_bench.jsonl",
            f"{_GITHUB}/lm-sys/FastChat/587d5cfa1609a43d192cedb8441cac3c17db105d/fastchat/llm_judge/data/mt_bench/"
            "question.jsonl",
            "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
            1024,
            _mt_bench_question,
            _conversation_prompt,
        ),
        Benchmark(  # Xia et al. 2024, arXiv 2401.07851
            "spec-bench",
            "spec_bench.jsonl",
            f"{_GITHUB}/hemingkx/Spec-Bench/66230f10cb0a02aced5ef3ce1e85163c16160454/data/spec_bench/question.jsonl",
            "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04",
            1024,
            _spec_bench_question,
            _conversation_prompt,
        ),
        Benchmark(  # Chen et al. 2021, arXiv 2107.03374
            "humaneval",
            "HumanEval.jsonl.gz",
            f"{_GITHUB}/openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d/data/HumanEval.jsonl.gz",
            "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
            512,
            _humaneval_question,
            _humaneval_prompt,
        ),
        Benchmark(  # Cobbe et al. 2021, arXiv 2110.14168: the test set
            "gsm8k",
            "gsm8k_test.jsonl",
            f"{_GITHUB}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/"
            "test.jsonl",
            "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            256,
            _gsm8k_question,
            _gsm8k_prompt,
        ),
    )
}


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of a name. Raises SpecquantError for another."""
    if name not in BENCHMARKS:
        raise SpecquantError(f"unknown benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
