"""How confident is an EAGLE head of each node of its trees, and which nodes does its model accept?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from specquant.decoding import generate
from specquant.decoding.models import Models
from specquant.errors import SpecquantError
from specquant.measure.measure import Measure, Measured
from specquant.measure.trees import OfHeads
from specquant.planning.confidences import in_order_of_confidence
from specquant.progress import tqdm
from specquant.tables.schemas import TABLES

# Nodes and iterations: the largest of the paper. A smaller tree is the beginning of it, so what that accepts follows.
LARGEST = (60, 6)


@dataclass(frozen=True, kw_only=True)
class Parameters(OfHeads):
    """What to record.

    Attributes:
        prompts_per_task: The most prompts of each task.
    """

    prompts_per_task: int | None = 2

    def units(self) -> list[dict[str, Any]]:
        return [
            {"model": f"{self.name} {which}", "scheme": "fp16", "weights": "trained", "iterations": LARGEST[1]}
            for which in ("target", "intermediate")
        ]


def traced(models: Models, parameters: Parameters, unit: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each step that verified a whole tree."""
    settings = replace(parameters.settings, draft_size=LARGEST[0], iterations=LARGEST[1])
    speculator = models.speculator("eagle2", settings)
    tokenizer = parameters.tokenizer()
    for prompt in tqdm(parameters.chosen_prompts(), desc=unit["model"], unit="prompt", leave=False):
        steps = generate(speculator, tokenizer, prompt["prompt"], parameters.max_new_tokens).steps
        for number, step in enumerate(steps):
            if len(step.tree) == LARGEST[0]:
                about = {"task": prompt["task"], "id": prompt["id"], "step": number}
                yield unit | about | in_order_of_confidence(step)


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Decode the prompts by EAGLE-2, on the target and on the intermediate model.

    Raises SpecquantError where no tree is whole.
    """
    models = parameters.models()
    for unit in units:
        rows = pd.DataFrame(traced(models[unit["model"]], parameters, unit))
        if rows.empty:
            raise SpecquantError(f"no prompt gave the {unit['model']} a tree of {LARGEST[0]} nodes: decode more tokens")
        yield unit, rows


MEASURE = Measure((TABLES["confidences"],), Parameters, run, "none")
