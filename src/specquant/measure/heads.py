"""What do EAGLE heads of fewer bits and tokens lose? The accepted length with each on trained models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from specquant.decoding.drafters import get_method, methods_with_trees
from specquant.decoding.models import tiny_models
from specquant.measure.measure import Measure, Measured
from specquant.measure.throughput import SchemeByScheme, decode_prompts
from specquant.models.device import dtype_parameters
from specquant.models.eagle import describe_head
from specquant.models.loading import load_tokenizer
from specquant.progress import tqdm
from specquant.tables.schemas import TABLES

# The same of the tiny models, whose vocabulary has 4096 entries: 1024 are as many as 32768 of 128256.
TINY_HEADS = ((None, None), ("w4a16-g128", None), (None, 2048), (None, 1024), ("w4a16-g128", 1024))
# What decodes with each of them: the first gives the tokens that the others must decode as well.
HEAD_METHODS = ("autoregressive", *methods_with_trees())


@dataclass(frozen=True, kw_only=True)
class Parameters(SchemeByScheme):
    """What to decode: with every head of `TINY_HEADS` on the target in each scheme, in the target's default dtype."""

    schemes: tuple[str, ...] = ("fp16", "w4a16-g128")

    def same(self) -> dict[str, Any]:
        return super().same() | {"tokens_counted_in": "calibration.txt"} | dtype_parameters(self.device)


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Decode the prompts with EAGLE heads of fewer bits and tokens: rows of `head_costs`."""
    prompts = parameters.chosen_prompts()
    for unit in units:
        target, rows = parameters.target(unit["scheme"]), []
        for head_scheme, head_vocabulary in tqdm(TINY_HEADS, desc=unit["scheme"], unit="head", leave=False):
            head = {"head_scheme": head_scheme, "head_vocabulary": head_vocabulary}
            models = tiny_models(parameters.models_dir, target, device=parameters.device, **head)
            how = parameters.settings, parameters.max_new_tokens
            decoded = decode_prompts(models, load_tokenizer(target), prompts, HEAD_METHODS, "tiny", *how)
            about = describe_head(head_scheme, head_vocabulary, models.target.config)
            rows += [unit | about | row for row in head_costs(decoded)]
        yield unit, compared_heads(pd.DataFrame(rows))


def head_costs(decoded: pd.DataFrame) -> list[dict]:
    """What a head reaches in rows of `throughput.decode_prompts`: one of each method that drafts with a head.

    accepted_length: the target's, tokens a step. head_accepted_length: of the model that verifies the head's trees: the
    target's by EAGLE-2, the intermediate model's in the hierarchy. differing_prompts: whose tokens are not those of
    decoding one by one.
    """
    rows = []
    for method, group in decoded.groupby("method", sort=False):
        if method == "autoregressive":
            continue
        accepted_length = (group.new_tokens - 1).sum() / group.steps.sum()
        head_accepted_length = accepted_length
        if get_method(method).trees_of == "intermediate":
            rounds = group.inner_rounds * group.steps
            head_accepted_length = (group.inner_accepted_length * rounds).sum() / rounds.sum()
        row = {"method": method, "prompts": len(group), "new_tokens": group.new_tokens.sum()}
        row |= {"accepted_length": accepted_length, "head_accepted_length": head_accepted_length}
        rows.append(row | {"differing_prompts": (group.first_difference >= 0).sum()})
    return rows


def compared_heads(rows: pd.DataFrame) -> pd.DataFrame:
    """With `ratio`: of head_accepted_length to that of the first head on the same target by the same method."""
    first = rows.groupby(["scheme", "method"], sort=False).head_accepted_length.transform("first")
    return rows.assign(ratio=rows.head_accepted_length / first)


MEASURE = Measure((TABLES["heads"],), Parameters, run, "none")
