"""What a user chooses of training drafters, one list for every command that does. Without torch, for help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["eagle", "eagle3"]


@dataclass(frozen=True)
class TrainingOptions:
    """How drafters for a model are made.

    Attributes:
        out: What to make: a directory.
        minutes: How long it takes, writing included; on a CPU at least one part of text is written.
        prompts: A file with what users say first, one to a line (default: the model thinks of it).
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
    """Of all drafters that the study needs: they take longer than one."""

    minutes: float = 9.0


@dataclass(frozen=True)
class HeadOptions:
    """Which head is made.

    Attributes:
        kind: eagle, whose trees are EAGLE-2's, or eagle3.
        draft_vocabulary: Tokens that an EAGLE-3 head drafts, the text's most frequent ones (default: a quarter of the
            model's).
    """

    kind: Kind = "eagle"
    draft_vocabulary: int | None = None
