"""What a real model accepted, step by step (traces.csv), in place of chances that are fitted to published lengths."""

import numpy as np
import pandas as pd

from specquant.decoding.drafters import get_method
from specquant.decoding.lookup import LookupMethod
from specquant.decoding.method import PLAN_FIELDS, DraftSettings, Plan
from specquant.decoding.traces import Trace, read_traces
from specquant.errors import SpecquantError
from specquant.planning.acceptance import AcceptanceStatistics, chances_by_place
from specquant.tables.intervals import interval


def of_one_target(rows: pd.DataFrame, scheme: str = "fp16", traced_scheme: str | None = None) -> pd.DataFrame:
    """The rows of greedy decoding of one target.

    Args:
        rows: traces.csv, or acceptance.csv.
        scheme: Of the target; where it was not traced, the first that was.
        traced_scheme: The one that was traced, if it is to be another; it must be there.

    Raises:
        SpecquantError: No step was traced at temperature 0, or none in that scheme, or rows are of several models.
    """
    greedy = rows[rows.temperature == 0]
    if greedy.empty:
        raise SpecquantError("the traces hold no step at temperature 0: record some (specquant bench acceptance)")
    if len(models := sorted(set(greedy.model))) > 1:
        raise SpecquantError(f"the traces are of {', '.join(models)}: keep the rows of one model")
    known = list(greedy.scheme.unique())
    if traced_scheme is not None and traced_scheme not in known:
        raise SpecquantError(f"the traces hold no step in {traced_scheme}: choose one of {', '.join(known)}")
    return greedy[greedy.scheme == (traced_scheme or (scheme if scheme in known else known[0]))]


class Traces:
    """The greedy steps of one target; scheme: in which it was traced.

    Args:
        rows: traces.csv.
        scheme: As for `of_one_target`; so is traced_scheme.

    Raises:
        SpecquantError: As `of_one_target`, or a step is none.
    """

    def __init__(self, rows: pd.DataFrame, scheme: str = "fp16", traced_scheme: str | None = None):
        chosen = of_one_target(rows, scheme, traced_scheme)
        self.scheme: str = chosen.scheme.iloc[0]
        # A question of each task in turn, so that a few tokens are of all tasks.
        turns = chosen.groupby([*PLAN_FIELDS, "benchmark", "task"]).cumcount()
        chosen = chosen.iloc[np.argsort(turns.to_numpy(), kind="stable")]
        self._steps: dict[Plan, list[Trace]] = {
            Plan(*plan): [step for text in of_plan.steps for step in read_traces(text)]
            for plan, of_plan in chosen.groupby(list(PLAN_FIELDS), sort=False)
        }

    @property
    def plans(self) -> list[Plan]:
        """Those that were traced."""
        return list(self._steps)

    def trees(self, plan: Plan) -> list[Trace]:
        """A head's trees of full size, on the model that verifies them. Raises SpecquantError where there are none."""
        trees = [tree for tree in self._verified(plan) if _is_tree_of(plan, tree)]
        if not trees:
            raise SpecquantError(f"no trees of {plan} were traced: trace that plan, or leave out --traces")
        return trees

    def lookups(self, plan: Plan) -> list[Trace]:
        """What a lookup drafted, in turn: just a root where it found nothing. Raises SpecquantError where nothing was
        traced."""
        steps = [Trace((-1,), ()) if _is_tree_of(plan, step) else step for step in self._verified(plan)]
        if not steps:
            raise SpecquantError(f"no drafts of {plan} were traced: trace that plan, or leave out --traces")
        return steps

    def _verified(self, plan: Plan) -> list[Trace]:
        """The steps of the model above the drafter: the target's, or the rounds of the intermediate model."""
        inner = "intermediate" in get_method(plan.method).companions
        return [each for step in self.steps(plan) for each in (step.all_rounds if inner else (step,))]

    def sequences(self, plan: Plan) -> list[int | None]:
        """How many tokens of each sequence the target accepted; None where it accepted all.

        Raises SpecquantError where a plan that drafts some has none.
        """
        steps = self.steps(plan)
        if not steps and "intermediate" in get_method(plan.method).companions:
            raise SpecquantError(f"no whole drafts of {plan} were traced: trace more of it, or leave out --traces")
        return [len(step.path) if len(step.path) < len(step.parents) - 1 else None for step in steps]

    def steps(self, plan: Plan) -> list[Trace]:
        """Steps of a plan, but those that were to draft fewer tokens than it asks for, at the end of a text. How many a
        lookup was to draft, a trace does not tell: of it, all count."""
        method, steps = get_method(plan.method), self._steps.get(plan, [])
        if "intermediate" in method.companions or not method.head:
            return [step for step in steps if len(step.parents) > plan.min_draft_length]
        return [
            step for step in steps if _is_tree_of(plan, step) or (_is_lookup_of(plan, step) and len(step.parents) > 1)
        ]

    def require(self, plan: Plan) -> None:
        """Raises SpecquantError where the drafts of a plan are not there, or are larger than the plan's."""
        method = get_method(plan.method)
        if method.head:
            self.trees(plan)
        if _has_lookup(plan):
            self.lookups(plan)
        self.sequences(plan)
        for step in self._steps[plan]:
            _require_size(plan, step)

    def statistics(self, intermediate: bool = False) -> AcceptanceStatistics:
        """How often drafts were accepted, for the planner.

        Args:
            intermediate: Whether an intermediate model is to draft; then there must be some of its sequences.
        """
        of_trees: dict[str, dict] = {"target": {}, "intermediate": {}}
        sequences: list[Trace] = []
        for plan, steps in self._steps.items():
            method = get_method(plan.method)
            if method.trees_of:
                lengths = [len(tree.path) for tree in self.trees(plan)]
                of_trees[method.trees_of][plan.tree] = np.bincount(lengths) / len(lengths)
            if "intermediate" in method.companions:
                sequences += steps
        agreement = chances_by_place(
            [len(step.parents) - 1 for step in sequences], [len(step.path) for step in sequences]
        )
        if intermediate and not agreement:
            raise SpecquantError(
                f"the traces hold {len(sequences)} drafts of an intermediate model, too few to tell their chances: "
                "trace vanilla or hierarchical decoding of more questions, or name no intermediate model"
            )
        return AcceptanceStatistics(of_trees["target"], of_trees["intermediate"], agreement or [0.0])


def _has_lookup(plan: Plan) -> bool:
    return isinstance(get_method(plan.method), LookupMethod)


def _is_lookup_of(plan: Plan, step: Trace) -> bool:
    """Whether a lookup drafted this. One that is joined with a head drafts sequences, and the head trees."""
    return _has_lookup(plan) and (step.is_sequence or not get_method(plan.method).head)


def _is_tree_of(plan: Plan, step: Trace) -> bool:
    """Whether this is a head's tree of full size."""
    drafted = bool(get_method(plan.method).head) and not _is_lookup_of(plan, step)
    return drafted and len(step.parents) == plan.draft_size


def _require_size(plan: Plan, step: Trace) -> None:
    """Raises SpecquantError where a step's drafts are larger than its plan lets them be."""
    method = get_method(plan.method)
    inner = "intermediate" in method.companions
    verified = step.all_rounds if inner else (step,)
    if inner and verified:
        most = plan.min_draft_length + len(verified[-1].path)  # one token less is there before the last round
        if len(step.parents) - 1 > most:
            raise SpecquantError(
                f"the traces of {plan} hold {len(step.parents) - 1} tokens that were handed up, where at most {most} "
                "could be: trace that plan again"
            )
    for each in verified:
        most = plan.draft_size if method.head else 1
        if _is_lookup_of(plan, each):
            most = 1 + DraftSettings().lookup_tokens
        if len(each.parents) > most:
            raise SpecquantError(
                f"the traces of {plan} hold a draft of {len(each.parents)} nodes, and its drafts have at most {most}: "
                "trace that plan again"
            )


def over_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """All tasks of a benchmark together: means over all of its steps, or judged tokens.

    Args:
        table: acceptance.csv.

    Returns:
        A row for each of everything else, with questions, accepted_length and acceptance_rate. Tasks have questions of
        their own, so that the half widths of their intervals add up as squares.
    """
    keys = ["model", "scheme", "benchmark", "temperature", *PLAN_FIELDS]
    rows = []
    for key, group in table.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True)) | {"questions": group.questions.sum()}
        for name, counted in (("accepted_length", "steps"), ("acceptance_rate", "judged_tokens")):
            share = group[counted] / group[counted].sum() if group[counted].sum() else float("nan")
            mean = (share * group[name]).sum(min_count=1)
            half = (((share * (group[f"{name}_high"] - group[f"{name}_low"]) / 2) ** 2).sum(min_count=1)) ** 0.5
            row |= dict(zip(interval(name), (mean, mean - half, mean + half), strict=True))
        rows.append(row)
    return pd.DataFrame(rows)
