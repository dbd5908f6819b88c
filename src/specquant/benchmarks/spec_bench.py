"""Spec-Bench: 480 questions of six tasks, MT-Bench's conversations among them (Xia et al. 2024, arXiv 2401.07851)."""

from specquant.benchmarks.benchmark import GITHUB, Benchmark, Question, id_field, text_field, turns_field
from specquant.benchmarks.chat import conversation_prompt

# The eight categories of conversations are MT-Bench's; each of the other five is a task of its own.
CONVERSATIONS = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
TASKS = dict.fromkeys(CONVERSATIONS, "multi-turn conversation") | {
    "translation": "translation",
    "summarization": "summarization",
    "qa": "question answering",
    "math_reasoning": "mathematical reasoning",
    "rag": "retrieval-augmented generation",
}


def question(record: dict, number: int) -> Question:
    category = text_field(record, "category")
    return Question(id_field(record), TASKS[category], category, turns_field(record), {})


BENCHMARK = Benchmark(
    name="spec-bench",
    file="spec_bench.jsonl",
    url=f"{GITHUB}/hemingkx/Spec-Bench/66230f10cb0a02aced5ef3ce1e85163c16160454/data/spec_bench/question.jsonl",
    sha256="4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04",
    max_new_tokens=1024,
    question=question,
    prompt=conversation_prompt,
)
