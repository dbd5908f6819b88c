"""What a user chooses of training drafters, one list for every command that does. Without torch, for help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["eagle", "eagle3"]


@dataclass(frozen=True)
class TrainingOptions:
    """How drafters for a model are made.

    Attributes:
        out: The directory to make.
        minutes: How long it takes, the writing of text included. On a CPU at least one part of the text is written.
        prompts: A file of users' first messages, one on each line (default: the model writes them).
        keep_in: A folder for text and checkpoints, from which the same command goes on (default: OUT.training).
        device: cuda or cpu (default: cuda where there is one).
    """

    out: Path
    minutes: float = 4.0
    prompts: Path | None = None
    keep_in: Path | None = None
    device: str | None = None

    @property
    def folder(self) -> Path:
        """Where text and checkpoints lie: where they are to be kept, else beside what is made."""
        return self.keep_in or self.out.with_name(f"{self.out.name}.training")


@dataclass(frozen=True)
class AllTrainingOptions(TrainingOptions):
    """As `TrainingOptions`, for all drafters that the study needs: they take longer than one."""

    minutes: float = 9.0


@dataclass(frozen=True)
class HeadOptions:
    """Which head is made.

    Attributes:
        kind: eagle, for EAGLE-2, or eagle3, for EAGLE-3.
        draft_vocabulary: How many tokens an EAGLE-3 head can draft: the text's most frequent ones (default: a quarter
            of the model's vocabulary).
        scheme: Of the target whose features its head learns on; the text is the unquantized target's.
        bits: Of each stored weight: 16, or 8 for integers with a scale for every 64 of them.
    """

    kind: Kind = "eagle"
    draft_vocabulary: int | None = None
    scheme: str = "fp16"
    bits: int = 16
