"""Recording a benchmark: one JSON line for each question and method as it is answered, then the table.

An interrupted run goes on where it stopped: what the file of lines holds is not measured again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from specquant.decoding import generate
from specquant.errors import SpecquantError
from specquant.experiments.benchmark import answer_question, benchmark_table, longest_prompt
from specquant.experiments.methods import DraftSettings, Models
from specquant.experiments.sandbox import wall
from specquant.experiments.tasks import get_benchmark, prompt_tokens, read_questions
from specquant.models.device import choose_device, dtype_parameters, named_dtype
from specquant.models.loading import load_tokenizer
from specquant.paths import resolve
from specquant.study.provenance import device_name, without_local_paths
from specquant.study.record import CLOCK
from specquant.study.results import write_results

WARM_UP_TOKENS = 16
# Measurements that an answer which ended at its first token does not have.
NUMBERS = ("draft_size", "accepted_length", "inner_rounds", "inner_accepted_length")
NUMBERS += ("draft_ms", "verify_ms", "other_ms", "tokens_per_s")


def record_benchmark(
    name: str,
    methods: Sequence[str],
    target: str | Path,
    companions: Mapping[str, str | Path],
    data_dir: str | Path,
    out_dir: str | Path,
    scheme: str | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    settings: DraftSettings | None = None,
    context_length: int | None = None,
    head_options: Mapping[str, str | int | Path | None] | None = None,
) -> Path:
    """Answer a benchmark's questions greedily by each method; returns the table's path, NAME.csv below `out_dir`.

    target, companions, scheme, context_length, head_options (`head_scheme` and so on): as for `Models`. limit: of
    questions for each task. max_new_tokens: in one turn (default: the paper's). device: the GPU by default, if there is
    one; dtype: that models compute in (default: `models.device.default_dtype`). Beside the table stand its provenance,
    NAME.json, and the lines with the answers, NAME.jsonl. A last line that broke off is measured again. Methods take
    turns on each question, so that a machine that grows slower slows all of them. Raises SpecquantError where there are
    lines that were measured otherwise than now asked for, or a file is missing, damaged or cannot be written.
    """
    benchmark = get_benchmark(name)
    questions, sha256 = read_questions(benchmark, data_dir, limit)
    max_new_tokens = benchmark.max_new_tokens if max_new_tokens is None else max_new_tokens
    device = choose_device(device)
    models = Models(
        target,
        scheme=scheme,
        dtype=named_dtype(dtype),
        device=device,
        context_length=context_length,
        **companions,
        **(head_options or {}),
    )
    settings = settings or DraftSettings()
    speculators = {method: models.speculator(method, settings) for method in methods}
    longest = longest_prompt(list(speculators.values()), max_new_tokens)
    tokenizer = load_tokenizer(target)
    parameters = {
        "benchmark": name,
        "questions_sha256": sha256,
        "as_published": sha256 == benchmark.sha256,
        "models": without_local_paths({"target": Path(target)} | dict(companions)),
        "max_new_tokens": max_new_tokens,
        "context_length": context_length,
        **dtype_parameters(device, dtype),
        "settings": asdict(settings),
        "head_scheme": models.head_scheme,
        "head_vocabulary": models.head_vocabulary,
        "head_text": Path(models.head_text).name if models.head_text else None,
        "device": device_name(device),
        "sandbox": wall() if name == "humaneval" else None,
    }
    path = resolve(out_dir) / f"{name}.jsonl"
    rows = _read_lines(path, parameters)
    done = {(row["scheme"], row["method"], row["id"]) for row in rows}
    scheme = models.target.scheme.name
    todo = [
        (question, method)
        for question in questions
        for method in speculators
        if (scheme, method, question.id) not in done
    ]
    for method in dict.fromkeys(method for _, method in todo):
        prompt, _ = prompt_tokens(benchmark, todo[0][0], [], tokenizer, longest)
        generate(speculators[method], tokenizer, prompt, min(WARM_UP_TOKENS, max_new_tokens))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as lines:
            for question, method in tqdm(todo, desc=f"{name}, {scheme}", unit="answer"):
                row = {"model": parameters["models"]["target"], "scheme": scheme, "method": method}
                row |= {"weights": "trained", "acceptance": "measured"}
                row |= answer_question(speculators[method], tokenizer, benchmark, question, max_new_tokens, longest)
                rows.append(row | {"parameters": parameters})
                lines.write(
                    json.dumps({name: _null(value) for name, value in rows[-1].items()}, allow_nan=False) + "\n"
                )
                lines.flush()
    except OSError as error:
        raise SpecquantError(
            f"cannot write {path}: {error.strerror}; the same command goes on from what is there"
        ) from None
    table = benchmark_table(pd.DataFrame(rows))
    return write_results(table, path.with_suffix(".csv"), parameters, device=device, repeats=1, clock=CLOCK)


def _read_lines(path: Path, parameters: dict) -> list[dict]:
    """The rows of a file of lines, none where there is no file; a last line that broke off is cut from the file."""
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with open(path, "r+b") as lines:
                lines.truncate(len(whole))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SpecquantError(f"cannot read {path}: {error.strerror}; choose another folder") from None
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            *_, theirs = (row[field] for field in ("scheme", "method", "id", "parameters"))
        except (ValueError, KeyError, TypeError):
            raise SpecquantError(f"{path}, line {number}: no answer of this benchmark: remove the line") from None
        for name, value in parameters.items():
            if theirs.get(name) != value:
                raise SpecquantError(
                    f"{path}, line {number}: measured with {name} {theirs.get(name)}, not {value}: choose another "
                    "folder, or remove the file"
                )
        rows.append({name: nan if value is None and name in NUMBERS else value for name, value in row.items()})
    return rows


def _null(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and isnan(value) else value
