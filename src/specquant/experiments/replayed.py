"""Every method at true size, on random weights: all passes really run, and acceptance is replayed."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch

from specquant.decoding import Drafter, EagleDrafter, Generation, Speculator
from specquant.decoding.drafters import get_method
from specquant.decoding.drafters.replay import ReplayedTrees
from specquant.decoding.method import PLAN_FIELDS, Plan
from specquant.decoding.models import assemble
from specquant.decoding.replay import Replay
from specquant.errors import SpecquantError
from specquant.experiments.throughput import measurements
from specquant.models.eagle import EagleHead
from specquant.models.graphs import GraphedLlama, graphed
from specquant.models.llama import Llama
from specquant.models.synthetic import synthetic_config, synthetic_head, synthetic_model
from specquant.planning.acceptance import Chances, Shapes
from specquant.planning.trees import tree_shapes, trees_of


@dataclass
class SyntheticModels:
    """A target and an intermediate model with random weights, each with an EAGLE head; made when first needed.

    target, intermediate: names in `models.synthetic.SHAPES`, or model directories whose shapes are taken. head_scheme,
    head_vocabulary: of the heads, see `synthetic_head`. Raises NotEnoughMemory where one does not fit the device.
    """

    target_name: str | Path
    intermediate_name: str | Path | None
    scheme: str
    intermediate_scheme: str = "w4a16-g128"
    head_scheme: str = "fp16"
    head_vocabulary: int | None = None
    context_length: int = 2048
    dtype: torch.dtype = torch.float16
    device: torch.device | str = "cuda"
    seed: int = 0

    @cached_property
    def target(self) -> Llama | GraphedLlama:
        return self._make(self.target_name, self.scheme)

    @cached_property
    def intermediate(self) -> Llama | GraphedLlama:
        if self.intermediate_name is None:
            raise SpecquantError("vanilla and hierarchical decoding need an intermediate model")
        return self._make(self.intermediate_name, self.intermediate_scheme)

    @cached_property
    def head(self) -> EagleHead:
        return self._head(self.target)

    @cached_property
    def inner_head(self) -> EagleHead:
        return self._head(self.intermediate)

    def speculator(self, plan: Plan, trees: pd.DataFrame) -> Speculator:
        """The decoder of a plan, whose trees take shapes from `trees` (`drafted_trees`)."""

        def trees_for(which: str) -> Drafter:
            head = self.head if which == "target" else self.inner_head
            shapes = tree_shapes(trees_of(trees, which), *plan.tree)
            drafter = EagleDrafter(head, *plan.tree, vocab_size=self.target.config.vocab_size)
            return ReplayedTrees(drafter, shapes, self.device)

        return assemble(plan, self, trees_for)

    def _head(self, model: Llama | GraphedLlama) -> EagleHead:
        return synthetic_head(model.config, model, self.head_scheme, self.head_vocabulary, seed=self.seed)

    def _make(self, name: str | Path, scheme: str) -> Llama | GraphedLlama:
        config = synthetic_config(name)
        return graphed(synthetic_model(config, scheme, self.context_length, self.dtype, self.device, self.seed))


def replay_plans(
    models: SyntheticModels,
    trees: pd.DataFrame,
    points: Sequence[tuple[Plan, Chances]],
    prompt_length: int = 512,
    new_tokens: int = 512,
    seed: int = 0,
) -> Iterator[dict]:
    """Decode a random prompt by each plan under its chances; a row of replayed.csv for each, as it is measured.

    Before its first row every plan decodes once without being timed, which captures its graphs. Times are milliseconds
    a step. head_chance, agreement: what is replayed at every depth, 0 where the plan has no such draft.
    head_vocabulary: 0 for all tokens. whole_drafts: the share of steps that accepted all of a draft.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = synthetic_config(models.target_name).vocab_size
    prompt = torch.randint(0, vocabulary, (prompt_length,), generator=generator).tolist()
    speculators = {}
    for plan, chances in points:
        method = get_method(plan.method)
        head = {"target": chances.head, "intermediate": chances.inner_head}.get(method.trees_of, [0.0])
        agreement = chances.agreement if "intermediate" in method.companions else 0.0
        if plan not in speculators:
            speculators[plan] = models.speculator(plan, trees)
            first = 16 if plan.method == "autoregressive" else new_tokens
            decode(speculators[plan], prompt, Replay(head, agreement, seed), first)
        generation = decode(speculators[plan], prompt, Replay(head, agreement, seed), new_tokens)
        whole = [len(step.path) == len(step.tree) - 1 > 0 for step in generation.steps]
        yield {
            "model": Path(models.target_name).name,
            "scheme": models.scheme,
            **asdict(plan),
            "task": "random tokens",
            "weights": "synthetic",
            "acceptance": "replayed",
            "head_scheme": models.head_scheme,
            "head_vocabulary": models.head_vocabulary or 0,  # all
            "intermediate": Path(models.intermediate_name).name if models.intermediate_name else "none",
            "intermediate_scheme": models.intermediate_scheme,
            "head_chance": round(head[0], 4),
            "agreement": agreement,
            "seed": seed,
            "context_length": prompt_length,
            **{("mean_draft_size" if k == "draft_size" else k): v for k, v in measurements(generation).items()},
            "whole_drafts": sum(whole) / len(whole),
        }


def decode(speculator: Speculator, prompt: list[int], rule: Replay, new_tokens: int) -> Generation:
    """Decode at least `new_tokens` tokens; what the last step brings more counts, too."""
    prefill = speculator.prefill(prompt, rule)
    tokens, steps = list(prefill.tokens), []
    while len(tokens) < new_tokens:
        steps.append(speculator.step(speculator.context_length - len(prompt) - len(tokens)))
        tokens += steps[-1].tokens
    lengths = [step.accepted_length for step in steps]
    return Generation(tokens, "", "maximum new tokens", lengths, prefill.draft_ms + prefill.verify_ms, steps)


def at_fitted_chances(replayed: pd.DataFrame, shapes: Shapes) -> pd.DataFrame:
    """The first row of each plan, where chances are not yet swept, with its speedup over decoding one by one.

    replayed: replayed.csv. Compares within a target, a scheme and a kind of head, so within one run. expected_length,
    expected_speedup: the same times of a step with the accepted length that the chances have in the mean; that of a
    replay is of about a hundred steps.
    """
    same = ["model", "scheme", "head_scheme", "head_vocabulary"]
    rows = replayed.groupby([*same, *PLAN_FIELDS], sort=False).head(1)
    rows = rows.assign(
        step_ms=rows.draft_ms + rows.verify_ms + rows.other_ms,
        expected_length=[
            shapes.statistics(Chances([chance], [chance], agreement)).accepted_length(Plan(*plan))
            for chance, agreement, *plan in rows[["head_chance", "agreement", *PLAN_FIELDS]].itertuples(index=False)
        ],
    )
    one_by_one = rows[rows.method == "autoregressive"].set_index(same).step_ms
    plain_ms = one_by_one.reindex(pd.MultiIndex.from_frame(rows[same])).to_numpy() / rows.step_ms
    return rows.assign(speedup=rows.accepted_length * plain_ms, expected_speedup=rows.expected_length * plain_ms)
