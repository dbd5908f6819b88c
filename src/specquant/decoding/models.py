"""A target and the models that draft for it, from their directories, and each method put together from them."""

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from specquant.decoding import Drafter, EagleDrafter, Speculator
from specquant.decoding.budget import Budget, ConfidenceMap, Prices
from specquant.decoding.drafters import METHODS, get_method
from specquant.decoding.method import ADAPTIVE, DraftSettings, Plan, TwoModels
from specquant.decoding.paying import Pays, WhilePaying
from specquant.decoding.pricing import measured_prices
from specquant.errors import SpecquantError
from specquant.files import cache_folder, read_text, resolve
from specquant.models.companions import COMPANIONS, OWN, directories_beside, is_own, target_in
from specquant.models.config import load_config
from specquant.models.device import choose_device, named_dtype
from specquant.models.eagle import DraftHead, head_scheme, require_count
from specquant.models.eagle3 import load_eagle3_config
from specquant.models.graphs import GraphedLlama, graphed
from specquant.models.hub import SMALL_FILES, locate
from specquant.models.llama import Llama, check_widths
from specquant.models.loading import (
    check_drafting_model,
    check_eagle3_head,
    check_head,
    frequent_tokens,
    load_eagle3_head,
    load_eagle_head,
    load_head_config,
    load_model,
    load_tokenizer,
)
from specquant.models.options import ModelOptions
from specquant.models.targets import quantized_target
from specquant.quant import get_scheme


def assemble(
    plan: Plan,
    models: TwoModels,
    trees: Callable[[str], Drafter],
    settings: DraftSettings | None = None,
    pays: Pays | None = None,
) -> Speculator:
    """The decoder of a plan. trees: gives what drafts trees for the "target" or for the "intermediate" model.
    settings: how lookups draft. pays: by which steps without a draft are chosen; None for drafts in all steps.

    Raises SpecquantError for an unknown method.
    """
    drafter = get_method(plan.method).drafter(plan, models, trees, settings or DraftSettings())
    if drafter is not None and pays is not None:
        drafter = WhilePaying(drafter, pays, models.target.device)
    return Speculator(models.target, drafter)


class Models:
    """A target with the companions that draft for it; each is loaded when a method first needs it.

    target: a model directory in any scheme, or fp16 weights with a `scheme` to round them to. Its EAGLE head, the
    intermediate model, that model's head and EAGLE-3 heads of both are directories of fp16 weights. All of them may be
    hub ids instead (`models.hub.locate`). dtype: that all of them compute in; None for the target's default
    (`models.device.default_dtype`). context_length: positions to make room for; None for all that each was made for.
    The intermediate model may be "self:" and a scheme: the target itself in fewer bits, quantized when it is first
    needed and kept; it shares what is the same in both, and drafts by the target's heads where it was given none.
    share_cache: also the cache, in vanilla decoding.
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
        eagle3_target: str | Path | None = None,
        eagle3_intermediate: str | Path | None = None,
        share_cache: bool = False,
    ):
        companions = eagle_target, intermediate, eagle_intermediate, eagle3_target, eagle3_intermediate
        self.target_path = target
        self.paths: dict[str, str | Path | None] = {"target": target, **dict(zip(COMPANIONS, companions, strict=True))}
        if self.own_scheme is not None:
            for head in ("eagle", "eagle3"):
                self.paths[f"{head}_intermediate"] = self.paths[f"{head}_intermediate"] or self.paths[f"{head}_target"]
        self.scheme, self.given_dtype, self.device, self.context_length = scheme, dtype, device, context_length
        self.row_invariant, self.share_cache = row_invariant, share_cache
        self.head_scheme, self.head_vocabulary, self.head_text = head_scheme, head_vocabulary, head_text
        self._heads: dict[str, DraftHead] = {}
        self.confidence_map = ConfidenceMap()  # of the heads, for adaptive draft sizes
        self._prices: dict[tuple[str, int, int], Prices] = {}
        self._checked: set[str] = set()  # companions that fit: many methods need the same one

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
            share_cache=options.share_cache,
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
            if method.probes and all(self.paths[which] for which in method.companions) and method.fits(self.share_cache)
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
        if self.own_scheme is None:
            return self._load("intermediate", self.dtype)
        target, scheme = self.target, self.own_scheme  # first, so that memory is asked for what comes on top of it
        own = quantized_target(
            Path(locate(self.target_path)).absolute(), scheme, cache_folder() / "targets", device=str(self.device)
        )
        model = load_model(own, None, self.dtype, self.device, self.context_length)
        share_ends(model, target)
        return graphed(model)

    @property
    def own_scheme(self) -> str | None:
        """The scheme of the intermediate model where that is the target itself."""
        intermediate = self.paths["intermediate"]
        return str(intermediate).removeprefix(OWN) if is_own(intermediate) else None

    @property
    def eagle_target(self) -> DraftHead:
        return self.head("eagle_target")

    @property
    def eagle_intermediate(self) -> DraftHead:
        return self.head("eagle_intermediate")

    def head(self, which: str) -> DraftHead:
        """The head that is this companion, loaded when it is first asked for."""
        if which not in self._heads:
            load = load_eagle3_head if which.startswith("eagle3_") else load_eagle_head
            model = self.target if which.endswith("_target") else self.intermediate
            self._heads[which] = load(self._path(which), model, self.head_scheme, self._head_tokens)
        return self._heads[which]

    def speculator(
        self, method: str | Plan, settings: DraftSettings | None = None, pays: Pays | None = None
    ) -> Speculator:
        """The decoder of a plan, or of a method under settings, the paper's by default. pays: as for `assemble`.

        Raises SpecquantError for an unknown method, and, before anything is loaded, where a companion was not given or
        does not fit.
        """
        settings = settings or DraftSettings()
        plan = method if isinstance(method, Plan) else get_method(method).plan(settings)
        self.check_companions(plan.method)
        kind = get_method(plan.method).head

        def trees(which: str) -> EagleDrafter:
            head, vocab_size = self.head(f"{kind}_{which}"), self.target.config.vocab_size
            if plan.draft_size != ADAPTIVE:
                return EagleDrafter(head, *plan.tree, settings.top_k, vocab_size)
            prices = self.prices(f"{kind}_{which}", plan.iterations, settings.top_k)
            budget = Budget(prices, settings.top_k)
            return EagleDrafter(head, budget.largest, plan.iterations, settings.top_k, vocab_size, budget)

        return assemble(plan, self, trees, settings, pays)

    def prices(self, which: str, iterations: int, top_k: int) -> Prices:
        """What steps with this head cost here, measured when it is first asked for."""
        key = which, iterations, top_k
        if key not in self._prices:
            model = self.target if which.endswith("_target") else self.intermediate
            vocab_size = self.target.config.vocab_size
            self._prices[key] = measured_prices(
                model, self.head(which), iterations, top_k, vocab_size, self.confidence_map
            )
        return self._prices[key]

    def _path(self, which: str) -> str | Path:
        """Where a model that was given is (`check_companions`)."""
        path = self.paths[which]
        assert path is not None, which
        return path

    def _load(self, which: str, dtype: torch.dtype | None, scheme: str | None = None) -> Llama | GraphedLlama:
        return graphed(load_model(self._path(which), scheme, dtype, self.device, self.context_length))

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
        companions = get_method(method).companions
        if not get_method(method).fits(self.share_cache):
            raise SpecquantError(
                f"{method} has no use for a shared cache (--share-cache), for its intermediate model verifies drafts: "
                "choose vanilla, or leave the option out"
            )
        for which in companions:
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
        if self.share_cache:
            self._check_shared_cache()
        for which in named:
            self._check_companion(which)

    def _check_shared_cache(self) -> None:
        """Raises SpecquantError where no intermediate model's keys and values mean the target's."""
        if self.own_scheme is None:
            raise SpecquantError(
                "a shared cache (--share-cache) needs an intermediate model that is the target in fewer bits: name one "
                "(--intermediate self:SCHEME)"
            )
        if get_scheme(self.own_scheme).activation_bits < 16:
            raise SpecquantError(
                f"a shared cache (--share-cache) does not fit an intermediate model in {self.own_scheme}, whose values "
                "are scaled for 8-bit activations: choose a scheme with 16-bit activations, as self:w4a16-g128"
            )

    def _check_companion(self, which: str) -> None:
        if which not in self._checked:
            self._require_fit(which)
            self._checked.add(which)

    def _require_fit(self, which: str) -> None:
        if which == "intermediate" and self.own_scheme is not None:
            self._check_own_scheme(self.own_scheme)
            return
        target, directory = (locate(self._path(name), SMALL_FILES) for name in ("target", which))
        if which == "intermediate":
            check_drafting_model(target, directory)
            return
        of_target = which.endswith("_target") or self.own_scheme is not None
        model = self.paths["target" if of_target else "intermediate"]
        load, check = (
            (load_eagle3_config, check_eagle3_head) if which.startswith("eagle3_") else (load_head_config, check_head)
        )
        config: Any = load(directory)
        if model is not None:
            check(config, load_config(locate(model, SMALL_FILES)), directory, tokenizer=target)

    def _check_own_scheme(self, name: str) -> None:
        """Raises SpecquantError where the target cannot be its own intermediate model in a scheme: it has no fp16
        weights, is no larger, or does not fit the scheme."""
        own, scheme = get_scheme(name), get_scheme(self.scheme or "fp16")
        path = locate(self.target_path, SMALL_FILES)
        config = load_config(path)
        if getattr(config, "quantization_config", None) is not None:
            raise SpecquantError(
                f"the intermediate model {OWN}{name} is made of fp16 weights, and {path} is quantized already: give "
                "its fp16 weights, with --scheme for the target"
            )
        if own.weight_bits >= scheme.weight_bits:
            raise SpecquantError(
                f"the intermediate model {OWN}{name} has no fewer bits than the target in {scheme.name}: it would cost "
                "as much"
            )
        check_widths(config, own, path, rotates=own.rotated)


def share_ends(model: Llama, other: Llama | GraphedLlama) -> None:
    """Let a model use embedding and LM head of another one where they are the same, so that they are there once."""
    for name in ("embed_tokens", "lm_head"):
        ours, theirs = getattr(model, name), getattr(other, name)
        if ours.weight.shape == theirs.weight.shape and torch.equal(ours.weight, theirs.weight):
            setattr(model, name, theirs)


def tiny_models(root: str | Path, target: str | Path | None = None, **options) -> Models:
    """The family in a directory laid out as `data/tiny` is, or as `data/smollm2`, whose target is packaged; `target`
    may be a quantized copy of its target.

    A relative root is below the project root. Where heads are to know few tokens, they are counted in its calibration
    text, if not in another. A family need not have heads of EAGLE-3 as well.
    """
    root = resolve(root)
    beside: dict[str, Any] = dict(directories_beside(root / "target", options.get("intermediate")))
    beside = {which: path for which, path in beside.items() if path.is_dir() or not which.startswith("eagle3")}
    usual = {**beside, "head_text": root / "calibration.txt"}
    return Models(target or target_in(root), **usual | options)
