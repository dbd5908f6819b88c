"""All that decides about the models in data/tiny: their shapes, what they read, and for how long."""

import math
from dataclasses import dataclass, field, replace

from specquant.errors import SpecquantError
from specquant.training.fit import Schedule

TARGET_SHAPE = {
    "hidden_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
}
INTERMEDIATE_SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}
WRITTEN = "written"  # beside the domains of the corpora: text that the target wrote


@dataclass(frozen=True)
class Recipe:
    """Every choice of the recipe. Rows are sequences of row_length tokens; `*_rows` say how many a step reads."""

    seed: int = 0
    vocabulary_size: int = 4096
    row_length: int = 1024
    target_shape: dict = field(default_factory=lambda: dict(TARGET_SHAPE))
    intermediate_shape: dict = field(default_factory=lambda: dict(INTERMEDIATE_SHAPE))

    # About in proportion to the text, so that all domains are read equally often (about 16 times).
    target: Schedule = field(default=Schedule(steps=2400, learning_rate=2e-3, weight_decay=1.0))
    target_rows: dict = field(default_factory=lambda: {"mathematics": 9, "code": 17, "prose": 6})
    target_dropout: float = 0.2

    # In all: rows of the corpora of which the target reads up to a quarter and writes the rest.
    written_rows: dict = field(default_factory=lambda: {"mathematics": 2560, "code": 5120, "prose": 2560})
    coldest: float = 0.6  # temperatures of what it writes
    hottest: float = 1.2
    intermediate: Schedule = field(default=Schedule(steps=9000, learning_rate=8e-3, weight_decay=0.1, muon=True))
    intermediate_rows: dict = field(default_factory=lambda: {"mathematics": 7, "code": 11, "prose": 6, WRITTEN: 40})
    greedy_weight: float = 0.5  # of the target's most likely token, beside its distribution
    eagle_target: Schedule = field(default=Schedule(steps=2500, learning_rate=1e-3, weight_decay=0.05))
    eagle_intermediate: Schedule = field(default=Schedule(steps=1500, learning_rate=1e-3, weight_decay=0.05))
    eagle_rows: dict = field(default_factory=lambda: {"mathematics": 4, "code": 5, "prose": 3, WRITTEN: 12})
    eagle_depth: int = 3

    evaluation_rows: int = 24  # per domain, while training; at the end all
    prompts: int = 32  # per domain, for accepted lengths
    prompt_tokens: int = 64
    continuation_tokens: int = 192
    calibration_tokens: int = 24_000

    def scaled(self, budget: float) -> "Recipe":
        """The same recipe with `budget` times the steps and the text that the target writes."""
        if not 0 < budget < math.inf:
            raise SpecquantError(f"a budget of {budget:g} trains nothing; give a positive number (1: the whole recipe)")

        def steps(schedule: Schedule) -> Schedule:
            return replace(schedule, steps=max(1, round(schedule.steps * budget)))

        return replace(
            self,
            target=steps(self.target),
            intermediate=steps(self.intermediate),
            eagle_target=steps(self.eagle_target),
            eagle_intermediate=steps(self.eagle_intermediate),
            written_rows={domain: max(1, round(count * budget)) for domain, count in self.written_rows.items()},
        )
