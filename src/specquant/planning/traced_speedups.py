"""What methods would reach on large models: the steps that they took on a small real one, at a card's recorded costs.

Every step counts as it was traced: its draft, what was accepted of it, and the rounds below it. Only its time is that
of the large models. Accepted lengths of more questions than were traced may take the place of the traces' own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean

import pandas as pd

from specquant.decoding.drafters import get_method, plan_label
from specquant.decoding.method import PLAN_FIELDS, Costs, ModelCosts, Plan, Prediction
from specquant.decoding.traces import Trace, read_traces
from specquant.errors import SpecquantError
from specquant.planning.traces import over_tasks
from specquant.tables.intervals import interval, over_questions_with, told_with_interval

ALL = "all tasks"


def step_ms(step: Trace, plan: Plan, costs: ModelCosts) -> float:
    """How long a traced step would take. A round without a draft is a pass of the intermediate model over one token. A
    lookup takes no time: it is a search on the host.

    Raises:
        SpecquantError: The plan needs an intermediate model's costs, and there are none.
    """
    return draft_ms(step, plan, costs) + costs.target.verify(len(step.parents)) + costs.target.other_ms


def draft_ms(step: Trace, plan: Plan, costs: ModelCosts) -> float:
    """Of this, until the draft is there. Raises SpecquantError as `step_ms`."""
    inner = costs.intermediate
    if "intermediate" not in get_method(plan.method).companions:
        return _draft_ms(step, plan, costs.target)
    if inner is None:
        raise SpecquantError(f"{plan.method} needs the costs of an intermediate model")
    rounds = step.all_rounds
    passes = sum(_draft_ms(each, plan, inner) + inner.verify(len(each.parents)) for each in rounds)
    return passes + len(rounds) * inner.other_ms


def _draft_ms(step: Trace, plan: Plan, costs: Costs) -> float:
    """Of a head, if it drafted. A lookup that is joined with one drafts a sequence, and a head's tree is none."""
    return 0.0 if step.is_sequence or not get_method(plan.method).head else costs.draft(plan.iterations)


def traced_prediction(plan: Plan, steps: Sequence[Trace], costs: ModelCosts) -> Prediction:
    """The means over a plan's traced steps. Raises SpecquantError as `step_ms`, and where passes were not measured."""
    inner = "intermediate" in get_method(plan.method).companions
    return Prediction(
        fmean(len(step.path) + 1 for step in steps),
        fmean(len(step.parents) for step in steps),
        fmean(len(step.all_rounds) if inner else 0 for step in steps),
        fmean(draft_ms(step, plan, costs) for step in steps),
        fmean(costs.target.verify(len(step.parents)) for step in steps),
    )


def traced_speedups(
    rows: pd.DataFrame, costs: Mapping[str, ModelCosts], accepted: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Predicted speedups over decoding one by one, of each plan on each task and on `ALL` of them.

    Args:
        rows: traces.csv, of one model in one scheme. Greedy steps count.
        costs: By the kind of head that a method has ("eagle", "eagle3"); those of "eagle" also serve methods without.
        accepted: acceptance.csv, greedy, of the same target. Accepted lengths are then those of its many questions;
            only the mean time of a step is that of the few that were traced. Intervals are those of accepted lengths.

    Returns:
        A row for each task and plan: questions, accepted_length and speedup with their 95% intervals over questions.

    Raises:
        SpecquantError: Rows are of several models or schemes, a step is none, or costs are missing.
    """
    greedy = rows[rows.temperature == 0]
    if greedy.empty or len(greedy[["model", "scheme"]].drop_duplicates()) > 1:
        raise SpecquantError("speedups need greedy traces of one model in one scheme: keep the rows of one")
    told = []
    greedy = greedy.sort_values(["benchmark", "task", "id"], key=lambda column: column.astype(str))  # so one interval
    for key, of_plan in greedy.groupby(list(PLAN_FIELDS), sort=False):
        plan = Plan(*key)
        of_head = costs[get_method(plan.method).head or "eagle"]
        one_ms = of_head.target.verify(1) + of_head.target.other_ms
        counted = [_counted(read_traces(text), plan, of_head) for text in of_plan.steps]
        questions = of_plan.assign(**pd.DataFrame(counted, of_plan.index))
        for task, some in [*questions.groupby("task", sort=False), (ALL, questions)]:
            row = {"task": task, **asdict(plan), "questions": len(some)}
            row |= over_questions_with("accepted_length", some.tokens.tolist(), some["count"].tolist())
            told.append(row | over_questions_with("speedup", (one_ms * some.tokens).tolist(), some.time_ms.tolist()))
    return pd.DataFrame(told) if accepted is None else _of_more_questions(pd.DataFrame(told), accepted)


def _of_more_questions(told: pd.DataFrame, accepted: pd.DataFrame) -> pd.DataFrame:
    """Speedups with the accepted lengths of acceptance.csv, and steps that take as long as the traced ones."""
    together = over_tasks(accepted.assign(benchmark=ALL)).assign(task=ALL)
    columns = ["questions", *interval("accepted_length")]
    keys = ["task", *PLAN_FIELDS]
    lengths = pd.concat([accepted, together]).set_index(keys)[columns].reindex(told.set_index(keys).index)
    if (missing := lengths[lengths.isna().any(axis=1)]).size:
        task, method = missing.index[0][:2]
        raise SpecquantError(f"acceptance.csv lacks {method} on {task}, which was traced: give the one of these traces")
    of_token = (told.speedup / told.accepted_length).to_numpy()
    values = dict(zip(interval("speedup"), (lengths[name].to_numpy() * of_token for name in columns[1:]), strict=True))
    return told.assign(**{name: lengths[name].to_numpy() for name in columns}, **values)


def _counted(steps: Sequence[Trace], plan: Plan, costs: ModelCosts) -> dict[str, float]:
    """The steps of one question, their tokens and how long they would take."""
    tokens = sum(len(step.path) + 1 for step in steps)
    return {"count": len(steps), "tokens": tokens, "time_ms": sum(step_ms(step, plan, costs) for step in steps)}


def best_plans(table: pd.DataFrame) -> pd.DataFrame:
    """Of each task and method the plan with the highest speedup. table: of `traced_speedups`."""
    return table.loc[table.groupby(["task", "method"], sort=False).speedup.idxmax()]


def beside_hierarchy(table: pd.DataFrame) -> pd.DataFrame:
    """For each task the fastest method and the paper's hierarchy, in words with their intervals, and the ratio.

    Args:
        table: Of `traced_speedups`.
    """
    best = best_plans(table).set_index(["task", "method"])
    rows = {}
    for task, of_task in best.groupby(level="task", sort=False):
        first, method = of_task.loc[of_task.speedup.idxmax()], of_task.speedup.idxmax()[1]
        plan = Plan(method, *(int(first[name]) for name in PLAN_FIELDS[1:]))
        hierarchy = best.loc[(task, "hierarchical")]
        rows[task] = {
            "fastest": plan_label(plan),
            "speedup": told_with_interval(first, "speedup"),
            "hierarchical": told_with_interval(hierarchy, "speedup"),
            "ratio": hierarchy.speedup / first.speedup,
        }
    return pd.DataFrame(rows).T.rename_axis("task")
