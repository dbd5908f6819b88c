"""MT-Bench: 80 conversations of two turns, in eight categories (Zheng et al. 2023, arXiv 2306.05685)."""

from specquant.benchmarks.benchmark import GITHUB, Benchmark, Question, id_field, text_field, turns_field
from specquant.benchmarks.chat import conversation_prompt


def question(record: dict, number: int) -> Question:
    return Question(id_field(record), "MT-Bench", text_field(record, "category"), turns_field(record), {})


BENCHMARK = Benchmark(
    name="mt-bench",
    file="mt_bench.jsonl",
    url=f"{GITHUB}/lm-sys/FastChat/587d5cfa1609a43d192cedb8441cac3c17db105d/fastchat/llm_judge/data/mt_bench/"
    "question.jsonl",
    sha256="119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    max_new_tokens=1024,
    question=question,
    prompt=conversation_prompt,
)
