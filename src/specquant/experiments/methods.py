"""The paper's four methods, put together from model directories."""

from dataclasses import dataclass
from pathlib import Path

import torch

from specquant.decoding import EagleDrafter, Speculator
from specquant.errors import SpecquantError
from specquant.models.graphs import GraphedLlama, graphed
from specquant.models.llama import Llama
from specquant.models.loading import load_eagle_head, load_model
from specquant.paths import resolve

METHODS = ("autoregressive", "vanilla", "eagle2", "hierarchical")


@dataclass(frozen=True)
class DraftSettings:
    """How the methods draft; the defaults are the paper's (sections 3 and 5).

    draft_size, iterations: of EAGLE-2's tree, its root counted. inner_draft_size, inner_iterations: of the tree that
    the intermediate model verifies in the hierarchy. min_draft_length: tokens that a small model hands up at least.
    """

    draft_size: int = 60
    iterations: int = 6
    top_k: int = 10
    inner_draft_size: int = 30
    inner_iterations: int = 3
    min_draft_length: int = 6


class Models:
    """A target with the companions that draft for it; each is loaded when a method first needs it.

    target: a model directory in any scheme, or fp16 weights with a `scheme` to round them to. Its EAGLE head, the
    intermediate model and that model's head are directories of fp16 weights. On a GPU, passes of models that compute in
    16 bits are CUDA graphs.
    """

    def __init__(
        self,
        target: str | Path,
        eagle_target: str | Path | None = None,
        intermediate: str | Path | None = None,
        eagle_intermediate: str | Path | None = None,
        scheme: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.paths = {
            "eagle_target": eagle_target,
            "intermediate": intermediate,
            "eagle_intermediate": eagle_intermediate,
        }
        self.target = graphed(load_model(target, scheme, dtype, device))
        self._intermediate: Llama | GraphedLlama | None = None

    def speculator(self, method: str, settings: DraftSettings | None = None) -> Speculator:
        """The decoder of one of METHODS. Raises SpecquantError for another, or where a companion was not given."""
        s = settings or DraftSettings()
        match method:
            case "autoregressive":
                return Speculator(self.target)
            case "vanilla":
                return Speculator(self.target, Speculator(self.intermediate(method), None, s.min_draft_length))
            case "eagle2":
                drafter = self._eagle("eagle_target", method, self.target, s.draft_size, s.iterations, s.top_k)
                return Speculator(self.target, drafter)
            case "hierarchical":
                intermediate = self.intermediate(method)
                drafter = self._eagle(
                    "eagle_intermediate", method, intermediate, s.inner_draft_size, s.inner_iterations, s.top_k
                )
                return Speculator(self.target, Speculator(intermediate, drafter, s.min_draft_length))
        raise SpecquantError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")

    def intermediate(self, method: str) -> Llama | GraphedLlama:
        if self._intermediate is None:
            path = self._path("intermediate", method)
            self._intermediate = graphed(load_model(path, dtype=self.target.dtype, device=self.target.device))
        return self._intermediate

    def _eagle(self, which: str, method: str, model: Llama | GraphedLlama, *tree: int) -> EagleDrafter:
        return EagleDrafter(load_eagle_head(self._path(which, method), model), *tree)

    def _path(self, which: str, method: str) -> str | Path:
        if self.paths[which] is None:
            raise SpecquantError(f"the method {method} needs the directory of the {which.replace('_', ' ')} model")
        return self.paths[which]


def tiny_models(root: str | Path, target: str | Path | None = None, **options) -> Models:
    """The family in a directory laid out as `data/tiny` is; `target` may be a quantized copy of its target.

    A relative root is below the project root.
    """
    root = resolve(root)
    return Models(
        target or root / "target",
        root / "eagle-target",
        root / "intermediate",
        root / "eagle-intermediate",
        **options,
    )
