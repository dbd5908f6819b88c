"""What the planner needs of the models and the machine at hand, from a short decoding by every method."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.typing import SeriesGroupBy
from transformers import PreTrainedTokenizerBase

from specquant.benchmarks.prompts import PROMPTS, prompt_ids, read_prompts
from specquant.decoding import Speculator, Step, acceptance_rule, decode_steps
from specquant.decoding.drafters import METHODS, get_method, methods_with, methods_with_trees
from specquant.decoding.method import ADAPTIVE, PLAN_FIELDS, Plan, Prediction, plans_in
from specquant.decoding.models import Models
from specquant.decoding.paying import Pays
from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.models.device import dtype_name
from specquant.models.digest import DIGEST, given_digests
from specquant.models.eagle import describe_head
from specquant.planning.acceptance import FEWEST_JUDGED, AcceptanceStatistics, Tree, chances_by_place
from specquant.planning.confidences import in_order_of_confidence, traces_of
from specquant.planning.costs import LevelCosts
from specquant.planning.planner import Planner
from specquant.progress import tqdm
from specquant.tables.provenance import device_name
from specquant.tables.results import read_provenance, read_results, write_results
from specquant.tables.sources import kernels_sha256, measured_with_others, needs_kernels

# What decodes. Of trees, only these can be planned; other minimum draft lengths follow from these.
PROBES = tuple(plan for method in METHODS.values() for plan in method.probes)
TRACED = 60  # nodes of the trees whose confidence is kept: the largest probe's, of which smaller trees are parts
NUMBERS = (*PLAN_FIELDS[1:], "drafts", "accepted", "rows", "draft_ms", "verify_ms", "other_ms")
COLUMNS = ("model", "scheme", "head_scheme", "head_vocabulary", "weights", "method", "level", *NUMBERS)
LEVELS = ("target", "intermediate")
CLOCK = "time.perf_counter, of each step"
LONGEST_DRAFT = 20  # tokens: behind less room, drafts would be cut
FEWEST = 3  # steps of which a median is taken
LARGEST = 10**7  # tokens, or milliseconds, of a step of decoding


def calibrate(
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    new_tokens: int = 64,
    most_of_one: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> pd.DataFrame:
    """Decode prompts by each probe whose models were given, until it has added `new_tokens` tokens.

    most_of_one: tokens behind one prompt. Prompts that leave no room are left out. Returns a row for each step of the
    target, and for each round of an intermediate model: `model_columns`, weights, the plan (method, draft_size,
    iterations, min_draft_length), level, drafts (that were verified), accepted (of these), rows (of the pass) and the
    times in milliseconds. Raises SpecquantError where companions do not fit, or too few steps could be taken.
    """
    given, rows = models.given_methods(), []
    probes = [plan for plan in PROBES if plan.method in given]
    for plan in tqdm(probes, desc="calibrating", unit="plan", leave=False, delay=5):
        speculator = models.speculator(plan)
        # On a GPU a first decoding captures graphs.
        for _ in range(2 if models.target.device.type == "cuda" else 1):
            decoded = list(_decode(speculator, tokenizer, prompts, new_tokens, most_of_one, temperature, top_p))
        rows += [model_columns(models) | {"weights": "trained"} | asdict(plan) | row for row in decoded]
        del speculator
    steps = pd.DataFrame(rows)
    if steps.empty or not (steps.method == "autoregressive").sum() >= FEWEST:
        raise SpecquantError(
            f"calibration needs prompts with room for {LONGEST_DRAFT} tokens behind them, which are then continued: "
            "give others, or a longer context"
        )
    return steps


def model_columns(models: Models) -> dict[str, str | int]:
    """The columns that say what was calibrated."""
    return {
        "model": Path(models.target_path).name,
        "scheme": models.target.scheme.name,
        **describe_head(models.head_scheme, models.head_vocabulary, models.target.config),
    }


def _decode(
    speculator: Speculator,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    new_tokens: int,
    most_of_one: int,
    temperature: float,
    top_p: float,
) -> Iterator[dict]:
    """The rows of one plan."""
    ends = speculator.model.config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    left = new_tokens
    for prompt in prompts:
        tokens = prompt_ids(prompt, tokenizer) if isinstance(prompt, str) else list(prompt)
        room = speculator.context_length - len(tokens) - 1  # behind the token that the prompt's pass brings
        if left <= 0 or room < LONGEST_DRAFT:
            continue
        steps = decode_steps(speculator, tokens, acceptance_rule(temperature, top_p), room + 1)
        latest, added, whole = next(steps).tokens, 0, False
        while added < min(most_of_one, left) and room - added >= LONGEST_DRAFT and not ends & set(latest):
            step = next(steps)
            rounds = speculator.drafter.rounds if speculator.drafter else ()
            for turn, inner in enumerate(rounds):
                # After a draft of which everything was accepted, the first round also runs its last token.
                yield _row("intermediate", inner, len(inner.tree) + (whole and turn == 0))
            traced = in_order_of_confidence(step) if len(step.tree) == TRACED and step.tree.scores is not None else {}
            yield _row("target", step, len(step.tree)) | traced
            whole = len(step.path) == len(step.tree) - 1 > 0
            added, latest = added + len(step.tokens), step.tokens
        left -= added


def _row(level: str, step: Step, rows: int) -> dict:
    times = {"draft_ms": step.draft_ms, "verify_ms": step.verify_ms, "other_ms": step.other_ms}
    return {"level": level, "drafts": len(step.tree) - 1, "accepted": len(step.path), "rows": rows, **times}


def calibrated(steps: pd.DataFrame) -> tuple[Planner, AcceptanceStatistics]:
    """A planner with the costs, and the statistics of acceptance, that steps (`calibrate`) had."""
    outer, inner = (steps[steps.level == level] for level in LEVELS)
    methods = [methods_with_trees((level,)) for level in LEVELS]
    planner = Planner(_costs(outer, methods[0]), _costs(inner, methods[1]) if len(inner) else None)
    drafted = outer[outer.method.isin(methods_with("intermediate"))]
    traced = outer[outer.confidence.notna()] if "confidence" in outer else outer[:0]
    return planner, AcceptanceStatistics(
        _accepted(outer, methods[0]),
        _accepted(inner, methods[1]),
        chances_by_place(drafted.drafts, drafted.accepted),
        [traces_of(traced)] if len(traced) >= FEWEST_JUDGED else [],
        _measured(steps),
    )


def _measured(steps: pd.DataFrame) -> dict[Plan, Prediction]:
    """Means over each plan's steps of the target."""
    told = {}
    for key, rows in steps.groupby([*PLAN_FIELDS], sort=False):
        outer = rows[rows.level == "target"]
        if len(outer) >= FEWEST:
            rounds = (len(rows) - len(outer)) / len(outer)
            means = outer[["accepted", "rows", "draft_ms", "verify_ms"]].mean()
            told[Plan(*key)] = Prediction(1 + means.accepted, means.rows, rounds, means.draft_ms, means.verify_ms)
    return told


def _costs(steps: pd.DataFrame, drafting: list[str]) -> LevelCosts:
    """Medians: of passes by their rows, of drafts by their iterations."""
    passes = _medians(steps.groupby("rows").verify_ms)
    drafts = _medians(_full(steps, drafting).groupby("iterations").draft_ms)
    return LevelCosts(passes, drafts, float(steps.other_ms.median()))


def _medians(times_ms: SeriesGroupBy) -> pd.Series:
    return times_ms.median()[times_ms.size() >= FEWEST]


def _full(steps: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """The steps that verified a whole tree."""
    return steps[steps.method.isin(methods) & (steps.drafts == steps.draft_size - 1)]


def _accepted(steps: pd.DataFrame, methods: list[str]) -> dict[Tree, np.ndarray]:
    """For each tree, how often 0, 1, 2, ... of its drafts were accepted."""
    groups = _full(steps, methods).groupby(["draft_size", "iterations"]).accepted
    return {tree: np.bincount(accepted) / len(accepted) for tree, accepted in groups if len(accepted) >= FEWEST}


def write_calibration(
    models: Models, tokenizer: PreTrainedTokenizerBase, path: str | Path, prompts_per_task: int = 1
) -> Path:
    """Decode shipped prompts greedily by every method whose models were given (`calibrate`), and keep the steps at
    `path`, a CSV file, for `choose_plan`. Raises SpecquantError, before anything is decoded, where no such file can be
    there, and as `calibrate`."""
    _check_path(path)
    prompts = [prompt["prompt"] for prompt in read_prompts(PROMPTS, prompts_per_task)]
    parameters = {"prompts": PROMPTS, "prompts_per_task": prompts_per_task, **made_with(models)}
    steps = calibrate(models, tokenizer, prompts, new_tokens=64 * len(prompts))
    return write_results(steps, path, parameters, device=str(models.device), clock=CLOCK, table="calibration")


def _check_path(path: str | Path) -> None:
    """Raises SpecquantError where a path is not that of a calibration: a table, which has its JSON beside it."""
    if resolve(path).is_dir():
        raise SpecquantError(f"{path} is a directory: name a file in it, such as {Path(path) / 'calibration.csv'}")
    if Path(path).suffix == ".json":
        raise SpecquantError(
            f"{path} is the name of the JSON beside a calibration: name {Path(path).with_suffix('.csv')}"
        )


def made_with(models: Models) -> dict[str, Any]:
    """What decides about steps beside `model_columns`, as parameters of their table: how models compute, and which they
    are, for two may have one name."""
    how = {"dtype": dtype_name(models.dtype), "row_invariant": models.row_invariant, "own_scheme": models.own_scheme}
    return given_digests(models.paths) | how | {"share_cache": models.share_cache}


def read_calibration(path: str | Path, models: Models) -> pd.DataFrame:
    """The steps in a file that `write_calibration` made of these models on such a device.

    Raises SpecquantError where there is none, a damaged one, or one of others.
    """
    _check_path(path)
    if not resolve(path).is_file():
        raise SpecquantError(f"there is no calibration at {path}: make one with specquant calibrate --out {path}")
    steps = read_results(path, COLUMNS, table="calibration")
    _check_steps(steps, path)
    for what, ours in model_columns(models).items():
        for theirs in steps[what].astype(str).unique():
            if theirs != str(ours):
                raise SpecquantError(f"{path} was measured with {what} {theirs}, not {ours}: calibrate again")
    provenance, device = read_provenance(path, "calibrate again"), str(models.device)
    if provenance["device"] != device_name(device):
        raise SpecquantError(
            f"{path} was measured on {provenance['device']}, not on {device_name(device)}: calibrate again"
        )
    kernels = kernels_sha256() if needs_kernels(device, CLOCK) else None
    if told := measured_with_others(provenance, kernels):
        raise SpecquantError(f"{path} was {told}: calibrate again")
    _check_made_with(provenance["parameters"], models, path)
    return steps


def _check_made_with(theirs: Mapping[str, Any], models: Models, path: str | Path) -> None:
    """Raises SpecquantError where steps were made with others than `made_with` says. theirs: their parameters."""
    theirs = {"share_cache": False} | dict(theirs)  # files from before it do not name it
    for name, ours in made_with(models).items():
        if name in theirs and theirs[name] == ours:
            continue
        which = name.removeprefix(DIGEST)
        if name == "dtype":
            told = f"in {theirs.get(name) or 'a dtype that it does not name'}, not in {ours}"
        elif which == name:
            told = f"with {name} {theirs.get(name)}, not {ours}"
        elif name in theirs:
            told = f"with another {which} than {models.paths[which]}, perhaps of the same name"
        elif f"{DIGEST}target" in theirs:
            told = f"without the {which} {models.paths[which]}"
        else:
            told = f"before calibrations said which {which} they are of: it may be another than {models.paths[which]}"
        raise SpecquantError(f"{path} was measured {told}: calibrate again")


def _check_steps(steps: pd.DataFrame, path: str | Path) -> None:
    """Raises SpecquantError, with the line, where a step is none that `calibrate` could have written."""
    trees = steps.method.isin(methods_with_trees())
    wrong = {
        "a number that is too large": (steps[list(NUMBERS)] > LARGEST).any(axis=1),
        "an unknown method or level": ~(steps.method.isin(METHODS) & steps.level.isin(LEVELS)),
        "a tree of no nodes or no iterations": trees & (steps[["draft_size", "iterations"]] < 1).any(axis=1),
        "more accepted tokens than drafts": steps.accepted > steps.drafts,
    }
    for what, where in wrong.items():
        if where.any():
            raise SpecquantError(f"{path} holds {what} in line {int(where.idxmax()) + 2}: calibrate again")
    if (steps.method == "autoregressive").sum() < FEWEST:
        raise SpecquantError(f"{path} holds fewer than {FEWEST} steps of decoding one by one: calibrate again")
    if "confidence" in steps:
        traces_of(steps[steps.confidence.notna()], path, "calibrate again")


def plans_of(models: Models, steps: pd.DataFrame) -> pd.DataFrame:
    """What every plan whose models were given would reach, the fastest first: as `plan_tables`, from a calibration."""
    return _table(models, *calibrated(steps))


def _table(models: Models, planner: Planner, statistics: AcceptanceStatistics) -> pd.DataFrame:
    given = models.given_methods()
    plans = [plan for plan in planner.plans(statistics) if plan.method in given]
    return planner.table(statistics, plans)


def choose_plan(
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    calibration: str | Path | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> tuple[Plan, dict[str, float], Pays | None]:
    """The fastest plan, the predicted tokens per second of each method's fastest, by what they are called, and by what
    the plan's drafts stop while they do not pay (`pays_of`). Where no draft pays, the plan is decoding one by one.

    By a file (`write_calibration`), or by decoding some tokens behind the prompt now; where its text ends soon or fills
    the context, behind shipped ones, too.
    """
    if calibration is not None:
        steps = read_calibration(calibration, models)
    else:
        prompts: list[str | Sequence[int]] = [prompt, *(shipped["prompt"] for shipped in read_prompts(PROMPTS, 1))]
        steps = calibrate(models, tokenizer, prompts, temperature=temperature, top_p=top_p)
    try:
        planner, statistics = calibrated(steps)
        table = _table(models, planner, statistics)
    except SpecquantError as error:
        if calibration is None:
            raise
        raise SpecquantError(f"{calibration} gives no plan ({error}): calibrate again") from None
    best = table.drop_duplicates("method")
    plans = plans_in(best)
    speeds = {str(plan): speed for plan, speed in zip(plans, best.tokens_per_s.tolist(), strict=True)}
    return plans[0], speeds, pays_of(plans[0], planner, statistics)


def pays_of(plan: Plan, planner: Planner, statistics: AcceptanceStatistics) -> Pays | None:
    """By what a plan's drafts stop while they do not pay; None where it has none, or adapts each by itself."""
    if plan.method == "autoregressive" or ADAPTIVE in (plan.draft_size, plan.min_draft_length):
        return None
    told, costs = get_method(plan.method).predict(plan, planner, statistics), planner.target
    sizes = costs.verify_ms.index

    def step_ms(rows: int) -> float:
        draft_ms = told.draft_ms if rows > 1 else 0.0
        return draft_ms + costs.verify(min(max(rows, sizes.min()), sizes.max())) + costs.other_ms

    return Pays(step_ms, told.accepted_length, told.draft_ms + told.verify_ms + costs.other_ms)
