"""A target and the models that draft for it, from their directories, and each method put together from them."""

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from specquant.decoding import Drafter, EagleDrafter, Speculator
from specquant.decoding.drafters import METHODS, get_method
from specquant.decoding.method import DraftSettings, Plan, TwoModels
from specquant.errors import SpecquantError
from specquant.files import read_text, resolve
from specquant.models.companions import COMPANIONS, directories_beside
from specquant.models.config import load_config
from specquant.models.device import choose_device, named_dtype
from specquant.models.eagle import EagleHead, head_scheme, require_count
from specquant.models.graphs import GraphedLlama, graphed
from specquant.models.hub import SMALL_FILES, locate
from specquant.models.llama import Llama
from specquant.models.loading import (
    check_drafting_model,
    check_head,
    frequent_tokens,
    load_eagle_head,
    load_head_config,
    load_model,
    load_tokenizer,
)
from specquant.models.options import ModelOptions
from specquant.quant import get_scheme


def assemble(plan: Plan, models: TwoModels, trees: Callable[[str], Drafter]) -> Speculator:
    """The decoder of a plan. trees: gives what drafts trees for the "target" or for the "intermediate" model.

    Raises SpecquantError for an unknown method.
    """
    return Speculator(models.target, get_method(plan.method).drafter(plan, models, trees))


class Models:
    """A target with the companions that draft for it; each is loaded when a method first needs it.

    target: a model directory in any scheme, or fp16 weights with a `scheme` to round them to. Its EAGLE head, the
    intermediate model and that model's head are directories of fp16 weights. All of them may be hub ids instead
    (`models.hub.locate`). dtype: that all of them compute in; None for the target's default
    (`models.device.default_dtype`). context_length: positions to make room for; None for all that each was made for.
    On a GPU, passes of models that compute in 16 bits are CUDA graphs. row_invariant: of the target, see
    `Llama.make_row_invariant`.

    head_scheme: to round the EAGLE heads' matrices and LM heads to. head_vocabulary: how many tokens their LM heads
    know: those that the text in the file `head_text` has most often (`models.eagle.shrink_head`). Both change what is
    drafted, and never what is decoded; None leaves the heads as they are.
    """

    def __init__(
        self,
        target: str | Path,
        eagle_target: str | Path | None = None,
        intermediate: str | Path | None = None,
        eagle_intermediate: str | Path | None = None,
        scheme: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        context_length: int | None = None,
        row_invariant: bool = False,
        head_scheme: str | None = None,
        head_vocabulary: int | None = None,
        head_text: str | Path | None = None,
    ):
        companions = eagle_target, intermediate, eagle_intermediate
        self.target_path = target
        self.paths: dict[str, str | Path | None] = {"target": target, **dict(zip(COMPANIONS, companions, strict=True))}
        self.scheme, self.given_dtype, self.device, self.context_length = scheme, dtype, device, context_length
        self.row_invariant = row_invariant
        self.head_scheme, self.head_vocabulary, self.head_text = head_scheme, head_vocabulary, head_text

    @classmethod
    def of(cls, options: ModelOptions) -> "Models":
        """The models that options name, on their device, none of them loaded yet. Raises SpecquantError for a value
        that is wrong, also where no method that is used would look at it."""
        companions: dict[str, Any] = dict(options.companions)
        models = cls(
            options.model,
            scheme=options.scheme,
            dtype=named_dtype(options.dtype),
            device=choose_device(options.device),
            context_length=options.context_length,
            row_invariant=options.row_invariant,
            head_scheme=options.head_scheme,
            head_vocabulary=options.head_vocabulary,
            head_text=options.text_of_heads,
            **companions,
        )
        models.check_options(options.named_companions)
        return models

    def given_methods(self) -> list[str]:
        """The methods that the planner knows whose companions were given. Raises SpecquantError, before anything is
        loaded, where one of them or the target is no model, or does not fit."""
        load_config(locate(self.target_path, SMALL_FILES))
        given = [
            name
            for name, method in METHODS.items()
            if method.probes and all(self.paths[which] for which in method.companions)
        ]
        for method in given:
            self.check_companions(method)
        return given

    @property
    def dtype(self) -> torch.dtype:
        """That all models compute in; where none was given, the target is loaded to know it."""
        return self.given_dtype or self.target.dtype

    @property
    def rounds_by_draft(self) -> bool:
        """Whether what a token's pass says may depend on how many others it has, so that a draft can change the text
        where two tokens are nearly equally likely: on a GPU, of a target in 16 bits that is not row-invariant."""
        return isinstance(self.target, GraphedLlama) and not self.row_invariant

    @cached_property
    def target(self) -> Llama | GraphedLlama:
        target = self._load("target", self.given_dtype, self.scheme)
        if self.row_invariant:
            target.make_row_invariant()
        return target

    @cached_property
    def intermediate(self) -> Llama | GraphedLlama:
        return self._load("intermediate", self.dtype)

    @cached_property
    def eagle_target(self) -> EagleHead:
        return self._load_head("eagle_target", self.target)

    @cached_property
    def eagle_intermediate(self) -> EagleHead:
        return self._load_head("eagle_intermediate", self.intermediate)

    def speculator(self, method: str | Plan, settings: DraftSettings | None = None) -> Speculator:
        """The decoder of a plan, or of a method under settings, the paper's by default.

        Raises SpecquantError for an unknown method, and, before anything is loaded, where a companion was not given or
        does not fit.
        """
        settings = settings or DraftSettings()
        plan = method if isinstance(method, Plan) else get_method(method).plan(settings)
        self.check_companions(plan.method)

        def trees(which: str) -> EagleDrafter:
            head = self.eagle_target if which == "target" else self.eagle_intermediate
            return EagleDrafter(head, *plan.tree, settings.top_k, self.target.config.vocab_size)

        return assemble(plan, self, trees)

    def _path(self, which: str) -> str | Path:
        """Where a model that was given is (`check_companions`)."""
        path = self.paths[which]
        assert path is not None, which
        return path

    def _load(self, which: str, dtype: torch.dtype | None, scheme: str | None = None) -> Llama | GraphedLlama:
        return graphed(load_model(self._path(which), scheme, dtype, self.device, self.context_length))

    def _load_head(self, which: str, model: Llama | GraphedLlama) -> EagleHead:
        return load_eagle_head(self._path(which), model, self.head_scheme, self._head_tokens)

    @cached_property
    def _head_tokens(self) -> torch.Tensor | None:
        if self.head_vocabulary is None:
            return None
        if self.head_text is None:
            raise SpecquantError("an EAGLE head of few tokens needs a text to count them in: give one (--head-text)")
        target = locate(self.target_path, SMALL_FILES)
        vocab_size = load_config(target).vocab_size
        return frequent_tokens(self.head_text, load_tokenizer(target), self.head_vocabulary, vocab_size)

    def check_companions(self, method: str) -> None:
        """Raises SpecquantError where a companion that the method needs was not given, is none, or does not fit."""
        for which in get_method(method).companions:
            if self.paths[which] is None:
                raise SpecquantError(f"the method {method} needs the directory of the {which.replace('_', ' ')} model")
            self._check_companion(which)
            if which != "intermediate":
                _ = self._head_tokens

    def check_options(self, named: Iterable[str] = ()) -> None:
        """Raises SpecquantError for a value that is wrong, also where no method that is used would look at it.

        named: the companions that a user named, rather than those that lie beside the target.
        """
        head_scheme(self.head_scheme)
        if self.scheme is not None:
            get_scheme(self.scheme)
        if self.head_text is not None:
            read_text(self.head_text, "the text to count tokens in,")
        if self.head_vocabulary is not None:
            require_count(self.head_vocabulary, load_config(locate(self.target_path, SMALL_FILES)).vocab_size)
        for which in named:
            self._check_companion(which)

    def _check_companion(self, which: str) -> None:
        target, directory = (locate(self._path(name), SMALL_FILES) for name in ("target", which))
        if which == "intermediate":
            check_drafting_model(target, directory)
            return
        config, model = load_head_config(directory), self.paths["target" if which == "eagle_target" else "intermediate"]
        if model is not None:
            check_head(config, load_config(locate(model, SMALL_FILES)), directory, tokenizer=target)


def tiny_models(root: str | Path, target: str | Path | None = None, **options) -> Models:
    """The family in a directory laid out as `data/tiny` is; `target` may be a quantized copy of its target.

    A relative root is below the project root. Where heads are to know few tokens, they are counted in its calibration
    text, if not in another.
    """
    root = resolve(root)
    usual: dict[str, Any] = {**directories_beside(root / "target"), "head_text": root / "calibration.txt"}
    return Models(target or root / "target", **usual | options)
