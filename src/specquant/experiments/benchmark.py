"""Benchmarks decoded by every method, question by question, and the table that the paper makes of them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from specquant.decoding import Generation, Speculator, generate
from specquant.errors import SpecquantError
from specquant.experiments.answers import is_right
from specquant.experiments.tasks import Benchmark, Question, prompt_tokens
from specquant.experiments.throughput import measurements

FIGURES = ("accepted_length", "tokens_per_s", "speedup", "correct_percent")
SHORTEST_PROMPT = 16


def longest_prompt(speculators: Sequence[Speculator], max_new_tokens: int) -> int:
    """How many tokens a prompt may have, the same for all methods. Raises SpecquantError where no room is left."""
    context = min(speculator.context_length for speculator in speculators)
    if max_new_tokens < 1 or context - max_new_tokens < SHORTEST_PROMPT:
        raise SpecquantError(
            f"{max_new_tokens} new tokens leave no room for a prompt in the models' context of {context}: choose from "
            f"1 to {context - SHORTEST_PROMPT} new tokens"
        )
    return context - max_new_tokens


def answer_question(
    speculator: Speculator,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: Benchmark,
    question: Question,
    max_new_tokens: int,
    longest: int,
    unsafe: bool = False,
) -> dict:
    """Answer a question's turns one after the other, greedily; each sees the answers before it.

    Returns a row: the figures of `throughput.measurements` over all turns together, decoded_tokens (of the steps, so
    without each turn's first), cut_tokens (cut from prompts longer than `longest`), the answers, and whether the last
    is right, None where there is no right answer, or no sandbox to find out (unsafe: find out without one).
    """
    generations: list[Generation] = []
    cut_tokens = 0
    for _ in question.turns:
        answers = [generation.text for generation in generations]
        prompt, cut = prompt_tokens(benchmark, question, answers, tokenizer, longest)
        cut_tokens += cut
        generations.append(generate(speculator, tokenizer, prompt, max_new_tokens))
    together = Generation(
        token_ids=[token for generation in generations for token in generation.token_ids],
        text="",
        stopped_by="",
        accepted_lengths=[length for generation in generations for length in generation.accepted_lengths],
        prefill_ms=sum(generation.prefill_ms for generation in generations),
        steps=[step for generation in generations for step in generation.steps],
    )
    return {
        "benchmark": benchmark.name,
        "task": question.task,
        "category": question.category,
        "id": question.id,
        **measurements(together),
        "decoded_tokens": sum(together.accepted_lengths),
        "cut_tokens": cut_tokens,
        "stopped_by": [generation.stopped_by for generation in generations],
        "answers": [generation.text for generation in generations],
        "correct": is_right(question, generations[-1].text, unsafe=unsafe),
    }


def benchmark_table(rows: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """The paper's figures for each scheme, method and task, and over all tasks where there are several.

    As Spec-Bench's own script computes them (arXiv 2401.07851, evaluation/speed.py): accepted_length is the mean over
    all steps of all questions; tokens_per_s is the mean over questions of each question's own speed (all its turns,
    without prefill, as the paper times them); speedup divides it by that of autoregressive decoding of the same
    questions in the same scheme. correct_percent: of the answers that can be right. FIGURE_low and FIGURE_high: the 95%
    bootstrap interval over questions (percentiles; both sides of a speedup are drawn together), seeded; it has no width
    where all answers are right or all wrong. A question whose answer ended at its first token has no speed.
    """
    if rows.task.nunique() > 1:
        rows = pd.concat([rows, rows.assign(task="overall")])
    same = ["model", "scheme", "task"]
    plain = rows[rows.method == "autoregressive"].set_index([*same, "id"]).tokens_per_s
    rows = rows.assign(plain=plain.reindex(pd.MultiIndex.from_frame(rows[[*same, "id"]])).to_numpy())
    table = []
    for key, group in rows.groupby(["model", "scheme", "method", "task", "weights", "acceptance"], sort=False):
        count = len(group)
        draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
        figures, drawn = _figures(group, np.arange(count)[None]), _figures(group, draws)
        row = dict(zip(("model", "scheme", "method", "task", "weights", "acceptance"), key, strict=True))
        row |= {
            "questions": count,
            "new_tokens": int(group.new_tokens.sum()),
            "cut_tokens": int(group.cut_tokens.sum()),
        }
        for figure in FIGURES:
            low, high = np.nan, np.nan
            if np.isfinite(drawn[figure]).any():
                low, high = np.nanquantile(drawn[figure], [0.025, 0.975])
            row |= {figure: figures[figure].item(), f"{figure}_low": low, f"{figure}_high": high}
        table.append(row)
    return pd.DataFrame(table)


def _figures(group: pd.DataFrame, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Each figure [samples] for draws [samples, questions] of a group's questions."""

    def total(values: pd.Series) -> np.ndarray:
        return np.nan_to_num(values.to_numpy(dtype=float))[draws].sum(axis=1)

    def mean(values: pd.Series) -> np.ndarray:
        return total(values) / total(values.notna())

    with np.errstate(invalid="ignore", divide="ignore"):
        both = group.tokens_per_s.where(group.plain.notna())
        return {
            "accepted_length": total(group.decoded_tokens) / total(group.steps),
            "tokens_per_s": mean(group.tokens_per_s),
            "speedup": mean(both) / mean(group.plain.where(both.notna())),
            "correct_percent": 100 * mean(group.correct.astype(float)),
        }


def paper_form(table: pd.DataFrame) -> pd.DataFrame:
    """The table for people: each figure with its interval in one cell; columns that say nothing are left out."""
    shown = table[["scheme", "task", "method", "questions"]].copy()
    if table.cut_tokens.any():
        shown["cut from prompts"] = table.cut_tokens
    for figure in FIGURES:
        if table[figure].notna().any():
            shown[figure.replace("_", " ")] = [
                f"{value:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(value) else "-"
                for value, low, high in zip(table[figure], table[f"{figure}_low"], table[f"{figure}_high"], strict=True)
            ]
    return shown
