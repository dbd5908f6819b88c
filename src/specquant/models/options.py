"""What a user chooses of models and drafts, one list for every command that decodes. Without torch, for help."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from specquant.errors import SpecquantError
from specquant.models.companions import COMPANIONS, directories_beside, place_of
from specquant.models.packaged import is_packaged

DEVICES = ("cpu", "cuda")
DType = Literal["float16", "bfloat16", "float32", "float64"]
DraftSize = int | Literal["adaptive"]
Quantizer = Literal["calibrated", "round-to-nearest"]
ExportFormat = Literal["compressed-tensors", "gptq"]
ADAPTIVE = -1  # in place of a number of nodes: each tree gets as many as pay


@dataclass(frozen=True)
class ModelOptions:
    """The models to decode with.

    Attributes:
        model: The target, fp16 or quantized: a directory, a GGUF file, a hub id as organization/name@revision, or
            smollm2.
        scheme: Round fp16 weights to this scheme (default: as the weights are stored).
        eagle_target: The target's EAGLE head (default: beside the target).
        intermediate: The intermediate model, which drafts in vanilla and hierarchical decoding; or self: and a scheme,
            as self:w4a8-qqq, for the target in fewer bits (default: beside the target).
        eagle_intermediate: The intermediate model's EAGLE head (default: beside the target).
        eagle3_target: The target's EAGLE-3 head (default: beside the target).
        eagle3_intermediate: The intermediate model's EAGLE-3 head (default: beside the target).
        head_scheme: Round EAGLE heads, with their LM heads, to this scheme: w4a16-g128.
        head_vocabulary: Let EAGLE heads draft a text's N most frequent tokens alone (default: all tokens).
        head_text: The text to count tokens in, a file (default: calibration.txt beside the target).
        share_cache: Let an intermediate model that is the target in fewer bits read the target's keys and values, in
            vanilla decoding.
        context_length: Positions to make room for (default: all that the models were made for).
        device: cuda or cpu (default: cuda where there is one).
        dtype: What models compute in (default: float16 on a GPU, else float32; float64 where activations have 8 bits).
        row_invariant: Give a token the same bits in every pass of the target on a GPU, so that every method writes what
            decoding one by one writes. Takes longer.
    """

    model: Path | str
    scheme: str | None = None
    eagle_target: Path | str | None = None
    intermediate: Path | str | None = None
    eagle_intermediate: Path | str | None = None
    eagle3_target: Path | str | None = None
    eagle3_intermediate: Path | str | None = None
    head_scheme: str | None = None
    head_vocabulary: int | None = None
    head_text: Path | str | None = None
    share_cache: bool = False
    context_length: int | None = None
    device: str | None = None
    dtype: DType | None = None
    row_invariant: bool = False

    @property
    def named_companions(self) -> list[str]:
        """Those that were named, rather than found beside the target."""
        return [which for which in COMPANIONS if getattr(self, which)]

    @property
    def companions(self) -> dict[str, Path | str | None]:
        """The companions that were named, and else those beside the target, if it is a directory, or those that ship
        with the project for a packaged one."""
        has_place = os.path.isdir(self.model) or is_packaged(self.model)
        return {
            which: getattr(self, which) or (path if has_place and os.path.isdir(path) else None)
            for which, path in directories_beside(self.model, self.intermediate).items()
        }

    @property
    def text_of_heads(self) -> Path | str | None:
        """The text to count tokens in: the named one or, where heads are to know few tokens, the one beside."""
        beside = place_of(self.model).parent / "calibration.txt"
        return self.head_text or (beside if self.head_vocabulary and beside.is_file() else None)


@dataclass(frozen=True)
class DraftSettings:
    """How the methods draft; the defaults are the paper's (sections 3 and 5).

    Attributes:
        draft_size: Tokens of EAGLE's tree, its root counted; or adaptive, for as many each time as pay.
        iterations: Levels of that tree; the most where it is adaptive.
        top_k: Nodes that an iteration expands, and children that it gives each of them.
        inner_draft_size: Tokens of the tree that the intermediate model verifies in the hierarchy; or adaptive.
        inner_iterations: Levels of that tree.
        min_draft_length: The fewest tokens that the intermediate model drafts for the target; or adaptive, as long
            as it pays.
        ngram_length: Tokens at the end of the text that prompt lookup looks for.
        lookup_tokens: Tokens that prompt lookup and suffix draft at most.
        lookup_branches: Branches of these drafts: 1 for sequences, more for trees.
        long_match: The fewest tokens that must match earlier text for a lookup to draft instead of the head that it is
            joined with.
        earlier_tokens: Tokens of the run's earlier answers that suffix searches, too (default: none).
    """

    draft_size: DraftSize = 60
    iterations: int = 6
    top_k: int = 10
    inner_draft_size: DraftSize = 30
    inner_iterations: int = 3
    min_draft_length: DraftSize = 6
    ngram_length: int = 3
    lookup_tokens: int = 10
    lookup_branches: int = 1
    long_match: int = 4
    earlier_tokens: int | None = None

    @property
    def tree(self) -> tuple[int, int]:
        """Nodes, or `ADAPTIVE`, and iterations of EAGLE's tree."""
        return _nodes(self.draft_size), self.iterations

    @property
    def inner_tree(self) -> tuple[int, int]:
        """Those of the intermediate model's."""
        return _nodes(self.inner_draft_size), self.inner_iterations

    @property
    def least(self) -> int:
        """Tokens that the intermediate model drafts at least, or `ADAPTIVE`."""
        return _nodes(self.min_draft_length)

    def told(self) -> dict[str, int | str]:
        """What is recorded of them. Of those of lookups only what was chosen, as results from before them say it."""
        first = ("draft_size", "iterations", "top_k", "inner_draft_size", "inner_iterations", "min_draft_length")
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name in first or getattr(self, field.name) != field.default
        }


def no_device(name: str) -> SpecquantError:
    """For a device that is not here, or is none."""
    return SpecquantError(f"there is no device {name!r} here: leave it out for the best there is")


def _nodes(draft_size: DraftSize) -> int:
    return ADAPTIVE if isinstance(draft_size, str) else draft_size
