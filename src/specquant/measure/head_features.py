"""Does a head that learns on the quantized target's features draft better for it than one that learns on fp16's?

Two copies of the family's head learn on, from the same text for as many training steps, one on each kind of features.
Both are compared with the head as it was. Drafts are judged on prompts that no head learnt from.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from specquant.decoding.models import tiny_models
from specquant.errors import SpecquantError
from specquant.files import locked, resolve, sha256_of
from specquant.measure.checks import require_at_least
from specquant.measure.measure import Measure, Measured, free
from specquant.measure.throughput import Decoding, SchemeByScheme, decode_prompts
from specquant.models.checkpoint import open_checkpoint
from specquant.models.companions import directories_beside, target_in
from specquant.models.device import dtype_parameters
from specquant.models.loading import load_tokenizer
from specquant.progress import tqdm
from specquant.tables.intervals import over_questions_with
from specquant.tables.schemas import TABLES
from specquant.training.heads import head_config, stored_features, train_head
from specquant.training.prepare import HEAD, Size, Workshop, check_minutes
from specquant.training.saving import rounded, save_head
from specquant.training.writing import Writing

AS_IT_IS = "none"  # in place of features: the head did not learn on
METHODS = ("autoregressive", "eagle2")  # the first gives the tokens that the other must decode as well


@dataclass(frozen=True, kw_only=True)
class Parameters(SchemeByScheme):
    """What to train and decode.

    Attributes:
        steps: Training steps.
        learning_rate: Its peak; a higher one makes a head forget more of what it knew.
        rows: Of text in each training step.
        row_length: Tokens of a row.
        minutes: How long the target writes text, if there is not as much yet; at least one part.
        keep_in: The folder for text, features, checkpoints and heads, from which the same command goes on.
    """

    schemes: tuple[str, ...] = ("fp16", "w4a16-g128")
    steps: int = 200
    learning_rate: float = 3e-4
    rows: int = 32
    row_length: int = 1024
    minutes: float = 1.0
    keep_in: Path = field(default=Path("results/head_features"))

    shared: ClassVar[tuple[str, ...]] = (*Decoding.shared, "steps", "learning_rate", "rows", "row_length", "minutes")

    def check(self) -> None:
        """Raises SpecquantError as `SchemeByScheme.check`, and for numbers out of range."""
        super().check()
        require_at_least(self, steps=1, rows=1, row_length=8)
        check_minutes(self.minutes)
        if not 0 < self.learning_rate < 1:
            raise SpecquantError(f"learning_rate is {self.learning_rate:g}: give a number above 0 and below 1")
        if not self.head.is_dir():
            raise SpecquantError(f"there is no EAGLE head at {self.head}: train one first (specquant train-head)")

    def same(self) -> dict[str, Any]:
        return super().same() | dtype_parameters(self.device)

    @property
    def head(self) -> Path:
        """The family's, as it is."""
        return directories_beside(resolve(self.models_dir) / "target")["eagle_target"]

    def workshop(self) -> Workshop:
        """The unquantized target and its text."""
        size = Size(Writing(row_length=self.row_length), step_rows=self.rows)
        return Workshop(target_in(resolve(self.models_dir)), resolve(self.keep_in), None, self.device, size)


def trained(parameters: Parameters, shop: Workshop, scheme: str) -> Path:
    """The directory of the family's head after it has learnt on the target's features in a scheme."""
    text, was = shop.written_in(scheme), open_checkpoint(parameters.head)
    schedule = replace(HEAD.schedule, steps=parameters.steps, learning_rate=parameters.learning_rate)
    schedule = replace(schedule, evaluate_every=max(1, parameters.steps // 4))
    recipe = replace(HEAD, rows=parameters.rows, schedule=schedule)
    before = [sha256_of(file) for file in sorted(parameters.head.iterdir())]
    of_all = shop.identity, text.folder.name, len(text.tokens), recipe, before
    name = f"learnt-on-{scheme}-{hashlib.sha256(repr(of_all).encode()).hexdigest()[:12]}"
    if not (out := shop.folder / name).is_dir():
        start = {tensor: was.read(tensor).float() for tensor in was.shapes}
        head, _ = train_head(name, shop.model, text, stored_features, recipe, None, shop.checkpoints(), start)
        save_head(rounded(head), head_config(shop.model.config), out)
    return out


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Train the heads that are lacking, and decode the prompts with each of them on the target in each scheme."""
    shop = parameters.workshop()
    for unit in units:
        heads = {AS_IT_IS: parameters.head}
        with locked(shop.folder / ".lock"):  # other processes use the same text and heads
            shop.write(parameters.minutes)
            for scheme in dict.fromkeys(("fp16", unit["scheme"])):
                heads[scheme] = trained(parameters, shop, scheme)
        yield unit, pd.DataFrame(decoded(parameters, unit["scheme"], heads))
        free(parameters.device)


def decoded(parameters: Parameters, scheme: str, heads: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """A row for each head: its accepted length, and that over the accepted length of the head that learnt on fp16's
    features (`ratio`), both with intervals over prompts. Every head gives the target's own tokens, so the ratio is that
    of steps."""
    target, prompts = parameters.target(scheme), parameters.chosen_prompts()
    how = METHODS, parameters.name, parameters.settings, parameters.max_new_tokens
    rows = {}
    for features, head in tqdm(heads.items(), desc=scheme, unit="head", leave=False):
        models = tiny_models(parameters.models_dir, target, device=parameters.device, eagle_target=head)
        told = decode_prompts(models, load_tokenizer(target), prompts, *how)
        rows[features] = told[told.method == METHODS[1]].reset_index()
    for features, told in rows.items():
        yield {
            "features": features,
            "prompts": len(told),
            "new_tokens": int(told.new_tokens.sum()),
            "differing_prompts": int((told.first_difference >= 0).sum()),
            **over_questions_with("accepted_length", told.new_tokens - 1, told.steps),
            **over_questions_with("ratio", rows["fp16"].steps, told.steps),
        }


MEASURE = Measure((TABLES["head_features"],), Parameters, run, "none")
