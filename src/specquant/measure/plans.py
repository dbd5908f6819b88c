"""How fast is each of a grid of plans on trained models, and what does the planner predict of it?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from specquant.decoding.method import PAPER_PLANS, PLAN_FIELDS, Plan
from specquant.decoding.models import Models, tiny_models
from specquant.measure.measure import Measure, Measured
from specquant.measure.throughput import CLOCK, SchemeByScheme, by_task, decode_prompts
from specquant.models.device import dtype_parameters
from specquant.models.loading import load_tokenizer
from specquant.planning.calibration import NUMBERS, calibrate, calibrated
from specquant.tables.schemas import TABLES

# Plans that are measured to see what the planner's pick among them is worth: the paper's, and what it may find better.
GRID = (
    *PAPER_PLANS,
    *(Plan("vanilla", min_draft_length=length) for length in (2, 3, 4, 8)),
    *(Plan("eagle2", *tree) for tree in ((8, 2), (16, 3))),
    *(Plan("hierarchical", *tree, length) for tree in ((8, 2), (16, 3)) for length in (2, 4, 6)),
)
REPEATS = 3  # of the grid's measurements, of which the fastest counts: others may use the machine


@dataclass(frozen=True, kw_only=True)
class Parameters(SchemeByScheme):
    """What to decode: the prompts of each task by every plan of `GRID`, with the target in each scheme.

    Models compute in the target's default dtype.

    Attributes:
        prompts_per_task: The most prompts of each task.
        device: cuda or cpu (default: cuda where there is one).
    """

    schemes: tuple[str, ...] = ("fp16", "w4a16-g128")
    prompts_per_task: int | None = 2
    device: str = ""

    repeats = REPEATS

    def same(self) -> dict[str, Any]:
        return super().same() | {"plans": [str(plan) for plan in GRID]} | dtype_parameters(self.device)


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Decode by every plan, and predict that by a calibration, which decodes the same prompts as far by fewer plans."""
    tasks = pd.DataFrame(parameters.chosen_prompts()).groupby("task", sort=False)
    for unit in units:
        target = parameters.target(unit["scheme"])
        models = tiny_models(parameters.models_dir, target, device=parameters.device)
        rows = [_of_task(models, load_tokenizer(target), prompts, parameters) for _, prompts in tasks]
        yield unit, pd.concat(rows, ignore_index=True)


def _of_task(
    models: Models, tokenizer: PreTrainedTokenizerBase, prompts: pd.DataFrame, parameters: Parameters
) -> pd.DataFrame:
    """A row for each plan, with tokens_per_s and predicted_tokens_per_s."""
    texts, records = prompts["prompt"].tolist(), prompts.to_dict("records")
    longest, steps, decoded = parameters.max_new_tokens, [], []
    for _ in range(REPEATS):
        steps.append(calibrate(models, tokenizer, texts, longest * len(texts), longest))
        decoded.append(decode_prompts(models, tokenizer, records, GRID, parameters.name, max_new_tokens=longest))
    planner, statistics = calibrated(fastest(steps))
    predicted = planner.table(statistics).set_index(list(PLAN_FIELDS)).tokens_per_s
    measured = by_plan(pd.concat(decoded, ignore_index=True))
    return measured.join(predicted.rename("predicted_tokens_per_s"), on=list(PLAN_FIELDS))


def fastest(repeats: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Of a calibration that was repeated, every step with the least times that it took: decoding takes the same steps
    each time."""
    times = [column for column in NUMBERS if column.endswith("_ms")]
    least = pd.concat([steps[times] for steps in repeats]).groupby(level=0).min()
    return repeats[0].assign(**least)


def by_plan(decoded: pd.DataFrame) -> pd.DataFrame:
    """As `throughput.by_task`, a row for each plan, from rows of `decode_prompts` whose methods are plans.

    Of prompts that were decoded more than once, the fastest time counts.
    """
    fastest = decoded.sort_values("decode_ms").drop_duplicates(["scheme", "method", "id"]).sort_index()
    table = by_task(fastest)
    plans = pd.DataFrame([asdict(plan) for plan in table.method])
    return table.drop(columns=["method", "speedup"]).join(plans)


MEASURE = Measure((TABLES["plans"],), Parameters, run, CLOCK)
