"""How confident is an EAGLE head of each node of its trees, and which nodes does its model accept?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from specquant.decoding import generate
from specquant.decoding.models import Models, tiny_models
from specquant.files import resolve
from specquant.measure.measure import Measure, Measured
from specquant.measure.throughput import Decoding
from specquant.models.device import default_dtype, dtype_name
from specquant.models.loading import load_tokenizer
from specquant.planning.confidences import in_order_of_confidence
from specquant.progress import tqdm
from specquant.tables.schemas import TABLES

# Nodes and iterations: the largest of the paper. A smaller tree is the beginning of it, so what that accepts follows.
LARGEST = (60, 6)


@dataclass(frozen=True, kw_only=True)
class Parameters(Decoding):
    """What to record.

    Attributes:
        name: What the table calls the models.
        prompts_per_task: The most prompts of each task.
    """

    name: str = "tiny"
    prompts_per_task: int | None = 2

    def check(self) -> None:
        """Raises SpecquantError as `Decoding.check`, and for models that are missing or do not fit together."""
        super().check()
        tiny_models(self.models_dir).given_methods()

    def same(self) -> dict[str, Any]:
        return super().same() | {"dtype": dtype_name(default_dtype(self.device, "fp16"))}

    def units(self) -> list[dict[str, Any]]:
        return [
            {"model": f"{self.name} {which}", "scheme": "fp16", "weights": "trained", "iterations": LARGEST[1]}
            for which in ("target", "intermediate")
        ]


def traced(models: Models, parameters: Parameters, unit: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each step that verified a whole tree."""
    settings = replace(parameters.settings, draft_size=LARGEST[0], iterations=LARGEST[1])
    speculator = models.speculator("eagle2", settings)
    tokenizer = load_tokenizer(resolve(parameters.models_dir) / "target")
    for prompt in tqdm(parameters.chosen_prompts(), desc=unit["model"], unit="prompt", leave=False):
        steps = generate(speculator, tokenizer, prompt["prompt"], parameters.max_new_tokens).steps
        for number, step in enumerate(steps):
            if len(step.tree) == LARGEST[0]:
                about = {"task": prompt["task"], "id": prompt["id"], "step": number}
                yield unit | about | in_order_of_confidence(step)


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Decode the prompts by EAGLE-2, on the target and on the intermediate model."""
    models_dir = resolve(parameters.models_dir)
    for unit in units:
        of_target = unit["model"].endswith("target")
        inner = Models(models_dir / "intermediate", models_dir / "eagle-intermediate")
        yield unit, pd.DataFrame(traced(tiny_models(models_dir) if of_target else inner, parameters, unit))


MEASURE = Measure((TABLES["confidences"],), Parameters, run, "none")
