"""Which trees do trained EAGLE heads grow, and how far do their models follow them? Replayed acceptance rests on it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from specquant.decoding import generate
from specquant.decoding.models import Models, tiny_models
from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.measure.measure import Measure, Measured
from specquant.measure.throughput import PAPER_SETTINGS, Decoding
from specquant.models.companions import target_in
from specquant.models.device import default_dtype, dtype_name
from specquant.models.loading import load_tokenizer
from specquant.models.options import DraftSettings
from specquant.progress import tqdm
from specquant.tables.schemas import TABLES

# Nodes and iterations of trees. In the paper: 60 and 6 on 8B, 48 and 6 on 70B, 24 and 3 on 70B for Spec-Bench,
# and 30 and 3 on the hierarchy's intermediate model.
TARGET_TREES = tuple((size, depth) for depth in (2, 3, 4, 6, 8) for size in (8, 16, 24, 32, 48, 60))
INNER_TREES = tuple((size, depth) for depth in (2, 3, 4) for size in (8, 16, 30))


@dataclass(frozen=True, kw_only=True)
class OfHeads(Decoding):
    """Parameters of what is recorded of both EAGLE heads of a family, on its target and on its intermediate model.

    Attributes:
        name: What the table calls the models.
    """

    name: str = "tiny"

    def check(self) -> None:
        """Raises SpecquantError as `Decoding.check`, for models that are missing or do not fit together, and for a
        setting other than top_k: trees here have sizes of their own, and nothing else drafts."""
        super().check()
        ignored = replace(self.settings, top_k=PAPER_SETTINGS.top_k)
        if given := [each.name for each in fields(ignored) if getattr(ignored, each.name) != each.default]:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise SpecquantError(f"trees of fixed sizes are recorded, and nothing else is: leave out {options}")
        tiny_models(self.models_dir).given_methods()

    def same(self) -> dict[str, Any]:
        return super().same() | {"dtype": dtype_name(default_dtype(self.device, "fp16"))}

    def models(self) -> dict[str, Models]:
        """The target and the intermediate model, each with its head, by what units call them."""
        models_dir = resolve(self.models_dir)
        inner = Models(models_dir / "intermediate", models_dir / "eagle-intermediate")
        return {f"{self.name} target": tiny_models(models_dir), f"{self.name} intermediate": inner}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(target_in(resolve(self.models_dir)))


@dataclass(frozen=True, kw_only=True)
class Parameters(OfHeads):
    """What to record."""

    # Nodes and iterations of trees on the target and on the intermediate model.
    target_trees = TARGET_TREES
    inner_trees = INNER_TREES

    def units(self) -> list[dict[str, Any]]:
        return [
            {"model": f"{self.name} {which}", "scheme": "fp16", "weights": "trained"}
            | {"draft_size": draft_size, "iterations": iterations}
            for which, sizes in (("target", self.target_trees), ("intermediate", self.inner_trees))
            for draft_size, iterations in sizes
        ]


def drafted_trees(
    models: Models,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[dict[str, str]],
    settings: DraftSettings,
    max_new_tokens: int = 64,
    most: int = 24,
) -> pd.DataFrame:
    """Decode prompts by EAGLE-2 on trained weights, and keep at most `most` of its trees of full size, spread evenly.

    Returns a row for each tree: model (`name`), scheme, weights, draft_size, iterations, accepted_length (the token
    that the model added included) and parents: those of the tree's nodes, with spaces between them. Raises
    SpecquantError where no tree is of full size.
    """
    speculator, rows = models.speculator("eagle2", settings), []
    for prompt in tqdm(prompts, desc=f"{name}, {settings.draft_size} nodes", unit="prompt", leave=False):
        for step in generate(speculator, tokenizer, prompt["prompt"], max_new_tokens).steps:
            if len(step.tree) == settings.draft_size:
                parents = " ".join(str(parent) for parent in step.tree.parents.tolist())
                rows.append({"accepted_length": step.accepted_length, "parents": parents})
    about = {"model": name, "scheme": models.target.scheme.name, "weights": "trained"}
    about |= {"draft_size": settings.draft_size, "iterations": settings.iterations}
    if not rows:
        raise SpecquantError(f"no prompt gave a tree of {settings.draft_size} nodes: decode more tokens")
    chosen = pd.DataFrame(rows[:: -(-len(rows) // most)])
    return chosen.assign(**about)[[*about, "accepted_length", "parents"]]


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Decode the prompts once for each size of tree, by EAGLE-2 on the target and on the intermediate model."""
    models, tokenizer, prompts = parameters.models(), parameters.tokenizer(), parameters.chosen_prompts()
    for unit in units:
        settings = replace(parameters.settings, draft_size=unit["draft_size"], iterations=unit["iterations"])
        yield (
            unit,
            drafted_trees(
                models[unit["model"]], unit["model"], tokenizer, prompts, settings, parameters.max_new_tokens
            ),
        )


MEASURE = Measure((TABLES["trees"],), Parameters, run, "none")
