"""How fast does each method answer a benchmark, and how well? Question by question, and the paper's table of it.

An interrupted run goes on where it stopped: what the file of answers holds is not measured again.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from specquant.benchmarks.benchmark import Question, read_questions
from specquant.benchmarks.registry import BENCHMARK_FILES, get_benchmark
from specquant.benchmarks.sandbox import wall, why_no_wall
from specquant.decoding import generate
from specquant.decoding.drafters import check_methods
from specquant.decoding.models import Models
from specquant.files import resolve, sha256_of
from specquant.measure import executors
from specquant.measure.answers import Lines
from specquant.measure.asking import Asker, longest_prompt
from specquant.measure.executors import Slurm
from specquant.measure.throughput import CLOCK, measurements
from specquant.models.device import choose_device, dtype_parameters
from specquant.models.digest import given_digests
from specquant.models.loading import load_tokenizer
from specquant.models.options import DraftSettings, ModelOptions
from specquant.planning.confidences import give_confidence_map
from specquant.progress import tqdm
from specquant.tables.provenance import device_name, node_of_job, without_local_paths
from specquant.tables.results import write_results
from specquant.tables.sources import FIELD, kernels_sha256, needs_kernels
from specquant.tables.speed import over_questions

WARM_UP_TOKENS = 16
FIGURES = ("accepted_length", "tokens_per_s", "speedup", "correct_percent")
WHAT_MAY_HAPPEN = (
    "programs that the model wrote may do all that you may do: read, change and delete your files, use the network and "
    "go on after the run"
)


@dataclass(frozen=True)
class Parameters:
    """What to measure.

    Attributes:
        benchmark: Its name: {benchmarks}.
        models: That answer.
        methods: Of {methods}, with commas.
        settings: How methods draft.
        data_dir: Where the files of benchmarks are (default: results/benchmarks).
        limit: Questions of each task, spread evenly (default: all).
        max_new_tokens: In one turn (default: the benchmark's own).
        unsafe: Run HumanEval's answers without bubblewrap where there is none: they may then do all that you may do.
    """

    benchmark: str
    models: ModelOptions
    methods: tuple[str, ...] = ("autoregressive", "eagle2")
    settings: DraftSettings = field(default_factory=DraftSettings)
    data_dir: Path = BENCHMARK_FILES
    limit: int | None = None
    max_new_tokens: int | None = None
    unsafe: bool = False

    @property
    def new_tokens(self) -> int:
        """The most in one turn."""
        return get_benchmark(self.benchmark).max_new_tokens if self.max_new_tokens is None else self.max_new_tokens

    def check(self) -> None:
        """Raises SpecquantError for a method or a benchmark that is none, and for files or models that are missing."""
        check_methods(self.methods, self.settings)
        Models.of(self.models)
        self.questions()

    def questions(self) -> list[Question]:
        """Those to answer."""
        return read_questions(get_benchmark(self.benchmark), self.data_dir, self.limit)[0]

    def lines(self, out_dir: str | Path, same: Mapping[str, Any]) -> Lines:
        """The file of answers in a folder. same: what all of them share."""
        every_question, _ = read_questions(get_benchmark(self.benchmark), self.data_dir)
        return Lines(resolve(out_dir) / f"{self.benchmark}.jsonl", dict(same), every_question)

    def same(self, device: str, sandbox: str | None = None) -> dict[str, Any]:
        """What all answers of one file share. sandbox: what programs run behind."""
        benchmark, models, text = get_benchmark(self.benchmark), self.models, self.models.text_of_heads
        _, sha256 = read_questions(benchmark, self.data_dir)
        return {
            "benchmark": benchmark.name,
            "questions_sha256": sha256,
            "as_published": sha256 == benchmark.sha256,
            "models": without_local_paths({"target": Path(models.model)} | models.companions),
            **given_digests({"target": models.model} | models.companions),
            "max_new_tokens": self.new_tokens,
            "context_length": models.context_length,
            **dtype_parameters(device, models.dtype),
            "settings": self.settings.told(),
            "head_scheme": models.head_scheme,
            "head_vocabulary": models.head_vocabulary,
            "head_text": Path(text).name if text else None,
            **({"head_text_sha256": sha256_of(text)} if text else {}),
            "device": device_name(device),
            **({FIELD: kernels_sha256()} if needs_kernels(device, CLOCK) else {}),
            "row_invariant": models.row_invariant,
            "share_cache": models.share_cache,
            "sandbox": sandbox,
        }


def record_benchmark(parameters: Parameters, out_dir: str | Path, ids: Sequence[str] | None = None) -> Path:
    """Answer a benchmark's questions greedily by each method; returns the table's path, NAME.csv below `out_dir`.

    ids: of the questions to answer, if not all. Where the executor has jobs do the work, they answer some each.

    Beside the table stand its provenance, NAME.json, and the lines with the answers, NAME.jsonl (`Lines`): several
    processes may answer into one folder, and a last line that broke off is measured again. Raises SpecquantError where
    there are lines that were measured otherwise than now asked for, or a file is missing, damaged or cannot be written.
    """
    executor = executors.current()
    parameters.check()
    if isinstance(executor, Slurm):
        from specquant.measure.task_jobs import record_by_jobs  # whose jobs measure by this module

        return record_by_jobs(parameters, out_dir, executor)
    executor.require_alone(parameters.benchmark)
    models, device = Models.of(parameters.models), choose_device(parameters.models.device)
    benchmark = get_benchmark(parameters.benchmark)
    questions = [question for question in parameters.questions() if ids is None or question.id in ids]
    give_confidence_map(models, parameters.settings.tree, parameters.settings.inner_tree)
    askers = _askers(parameters, models)
    sandbox = _sandbox(parameters.unsafe) if benchmark.runs_programs else None
    lines = parameters.lines(out_dir, parameters.same(device, sandbox))
    with lines.locked():  # refuses what cannot be written before anything is measured
        lines.read()
    todo = lines.missing(models.target.scheme.name, questions, parameters.methods)
    for method in dict.fromkeys(method for _, method in todo):
        asker = askers[method]
        prompt, _ = asker.prompt(todo[0][0])
        generate(asker.speculator, asker.tokenizer, prompt, min(WARM_UP_TOKENS, parameters.new_tokens))
    _answer_all(lines, models.target.scheme.name, todo, askers, parameters.unsafe)
    return write_table(lines, device)


def _askers(parameters: Parameters, models: Models) -> dict[str, Asker]:
    """What asks each method, all of them with prompts of the same length."""
    speculators = {method: models.speculator(method, parameters.settings) for method in parameters.methods}
    longest = longest_prompt(list(speculators.values()), parameters.new_tokens)
    tokenizer, benchmark = load_tokenizer(parameters.models.model), get_benchmark(parameters.benchmark)
    return {
        method: Asker(speculator, tokenizer, benchmark, parameters.new_tokens, longest)
        for method, speculator in speculators.items()
    }


def write_table(lines: Lines, device: str = "cpu") -> Path:
    """Write the table of a file of answers; returns its path. device: where this process measured."""
    with lines.locked():  # so that the last of several processes writes the table of all lines
        lines.read()
        table = benchmark_table(pd.DataFrame(lines.in_order()))
        path = lines.path.with_suffix(".csv")
        return write_results(table, path, lines.parameters, device=device, repeats=1, clock=CLOCK)


def _answer_all(
    lines: Lines, scheme: str, todo: Sequence[tuple[Question, str]], askers: Mapping[str, Asker], unsafe: bool
) -> None:
    """Answer questions, each by a method, and write a line for each as it is answered.

    Methods take turns on each question, so that a machine that grows slower slows all of them.
    """
    for question, method in tqdm(todo, desc=f"{lines.path.stem}, {scheme}", unit="answer"):
        lines.read()
        if (scheme, method, question.id) in lines.rows:
            continue  # by another process, with the same command
        row = {"model": lines.parameters["models"]["target"], "scheme": scheme, "method": method}
        row |= {"weights": "trained", "acceptance": "measured"} | node_of_job()
        row |= answer_question(askers[method], question, unsafe)
        lines.add(row | {"parameters": lines.parameters})


def _sandbox(unsafe: bool) -> str | None:
    """What answers run behind, None where they do not run; says so where it is not a sandbox."""
    if wall():
        return wall()
    if unsafe:
        print(f"specquant: {why_no_wall()}: {WHAT_MAY_HAPPEN}", file=sys.stderr)
        return "unsafe"
    print(
        f"specquant: answers are recorded, but not judged: {why_no_wall()}; --unsafe runs them all the same, but then "
        f"{WHAT_MAY_HAPPEN}",
        file=sys.stderr,
    )
    return None


def answer_question(asker: Asker, question: Question, unsafe: bool = False) -> dict[str, Any]:
    """Answer a question's turns one after the other, greedily; each sees the answers before it.

    Returns a row: the figures of `throughput.measurements` over all turns together, decoded_tokens (of the steps, so
    without each turn's first), cut_tokens (cut from prompts that were too long), the answers, and whether the last is
    right, None where there is no right answer, or no sandbox to find out (unsafe: find out without one).
    """
    answer = asker.ask(question)
    return {
        "benchmark": asker.benchmark.name,
        "task": question.task,
        "category": question.category,
        "id": question.id,
        **measurements(answer.together),
        "decoded_tokens": sum(answer.together.accepted_lengths),
        "cut_tokens": answer.cut_tokens,
        "stopped_by": [turn.stopped_by for turn in answer.turns],
        "answers": [turn.text for turn in answer.turns],
        "correct": asker.benchmark.is_right(question, answer.turns[-1].text, unsafe),
    }


def benchmark_table(rows: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """The paper's figures for each scheme, method and task, and over all tasks where there are several.

    As Spec-Bench's own script computes them (`tables.speed`): accepted_length is the mean over all steps of all
    questions; tokens_per_s is the mean over questions of each question's own speed (all its turns, without prefill);
    speedup divides it by that of autoregressive decoding of the same questions in the same scheme. correct_percent: of
    the answers that can be right. FIGURE_low and FIGURE_high: the 95% bootstrap interval over questions (percentiles;
    both sides of a speedup are drawn together), seeded; it has no width where all answers are right or all wrong. A
    question whose answer ended at its first token has no speed.
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
        return over_questions(values.to_numpy(dtype=float)[draws])

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
