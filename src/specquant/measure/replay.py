"""How fast is each method at true size? Every pass really runs, on random weights; acceptance is replayed."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from os.path import realpath
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from specquant.decoding.drafter import Drafter
from specquant.decoding.drafters import get_method, methods_with
from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.decoding.drafters.replay import ReplayedTrees, with_replayed_lookups
from specquant.decoding.generation import Generation, decode_steps
from specquant.decoding.lookup import LookupMethod
from specquant.decoding.method import Plan, plans_in
from specquant.decoding.models import assemble
from specquant.decoding.replay import Replay
from specquant.decoding.speculator import Speculator
from specquant.decoding.step import Step
from specquant.errors import SpecquantError
from specquant.measure.checks import later_seed, require_at_least
from specquant.measure.measure import Measure, Measured, free, left_out
from specquant.measure.parameters import Common
from specquant.measure.throughput import measurements
from specquant.models.device import default_dtype, dtype_parameters, named_dtype
from specquant.models.eagle import DraftHead, describe_head, head_scheme, require_count
from specquant.models.graphs import GraphedLlama, graphed
from specquant.models.llama import Llama
from specquant.models.memory import NotEnoughMemory
from specquant.models.options import DType
from specquant.models.synthetic import Synthetic, require_room, synthetic_config, synthetic_head, synthetic_model
from specquant.planning import acceptance
from specquant.planning.acceptance import Chances, Shapes
from specquant.planning.recorded import plan_tables
from specquant.planning.traces import Traces
from specquant.planning.trees import RECORDED_TREES, tree_shapes, trees_of
from specquant.quant import get_scheme
from specquant.tables.results import read_results
from specquant.tables.schemas import REPLAYED
from specquant.training.eagle3 import layers_to_read

# Around the paper's choices, to compare predictions with.
MORE_PLANS = (
    Plan("vanilla", min_draft_length=4),
    Plan("eagle2", 16, 3),
    Plan("hierarchical", 16, 3, 6),
    Plan("hierarchical", 30, 3, 10),
)
CHANCES = (0.5, 0.6, 0.7, 0.9)  # that are swept beside the fitted ones
AGREEMENTS = (0.5, 0.7, 0.8, 0.95)


@dataclass(frozen=True)
class Parameters(Common):
    """What to decode.

    Attributes:
        model: The target: llama-3-8b or llama-3-70b, or a directory whose shapes are taken; its weights are random.
        intermediate: Likewise (default: none, and only methods without one run).
        schemes: Of the target, with commas.
        share_cache: Let an intermediate model of the target's shapes read the target's keys and values, in vanilla
            decoding.
        sweep: More plans, and acceptance over a range.
        planned: A folder of recorded costs, such as data/recorded/h200. Each method also decodes by the plan that
            `specquant plan` finds the fastest from them.
        head_scheme: Of the EAGLE heads.
        head_vocabulary: Tokens that the heads know (default: all; of an EAGLE-3 head 32000).
        intermediate_scheme: Of the intermediate model.
        accepted_length: Of EAGLE-2's --tree, to which acceptance is fitted.
        tree: Nodes and iterations of it, with a comma.
        hierarchical_length: The accepted length of the paper's hierarchy, to which acceptance is fitted, too.
        trees: Shapes of trees, a CSV file, that drafts take (default: those of the tiny models).
        traces: What a real model accepted, in place of assumed acceptance: traces.csv of `bench acceptance`.
        traced_scheme: Of the target that was traced (default: as the target's, where that was traced).
        methods: Of those that were traced, with commas (default: all whose models are named).
        new_tokens: Tokens to decode by each plan.
        prompt_length: Tokens in the cache before.
        processes: Fresh interpreters, each with draws of its own, for intervals.
        seed: Of weights and draws.
        dtype: What models compute in (default: float16 on a GPU; on a CPU float32, or float64 where
            activations have 8 bits).
    """

    model: str | Path
    intermediate: str | Path | None = None
    schemes: tuple[str, ...] = ("w4a16-g128",)
    share_cache: bool = False
    sweep: bool = False
    planned: Path | None = None
    head_scheme: str = "fp16"
    head_vocabulary: int | None = None
    intermediate_scheme: str = "w4a16-g128"
    accepted_length: float = 3.0
    tree: tuple[int, ...] = (24, 3)
    hierarchical_length: float = 5.1
    trees: Path = Path(RECORDED_TREES)
    traces: Path | None = None
    traced_scheme: str | None = None
    methods: tuple[str, ...] = ()
    new_tokens: int = 512
    prompt_length: int = 512
    processes: int = 3
    seed: int = 0
    dtype: DType | None = None

    shared = ("share_cache", "trees", "traced_scheme", "methods", "new_tokens", "prompt_length", "seed")

    def check(self) -> None:
        """Raises SpecquantError for an unknown scheme or model, and for numbers out of range."""
        super().check()
        get_scheme(self.intermediate_scheme)
        head_scheme(self.head_scheme)
        if len(self.tree) != 2:
            raise SpecquantError(f"tree is {self.tree}: give nodes and iterations, such as 24,3")
        for what in ("accepted_length", "hierarchical_length"):
            if not 1 <= getattr(self, what) < math.inf:
                named = what.replace("_", " ")
                raise SpecquantError(f"the {named} is {getattr(self, what)}; it must be a number of at least 1")
        for name in (self.model, self.intermediate):
            if name is not None:
                require_count(self.head_vocabulary, synthetic_config(name).vocab_size)
        same = self.intermediate is not None and realpath(self.intermediate) == realpath(self.model)
        if self.share_cache and not same:
            raise SpecquantError(
                "a shared cache (--share-cache) needs an intermediate model of the target's shapes: give the same for "
                "--intermediate as for --model, or leave the option out"
            )
        require_at_least(self, new_tokens=2, prompt_length=1, seed=0)  # the prompt's pass gives the first
        if self.traces is None and (self.methods or self.traced_scheme):
            raise SpecquantError(
                "--methods and --traced-scheme choose of traces: give some (--traces), or leave them out"
            )
        assumed = ("sweep", "planned", "accepted_length", "tree", "hierarchical_length", "trees")
        given = [f"--{name.replace('_', '-')}" for name in assumed if getattr(self, name) != getattr(Parameters, name)]
        if self.traces is not None and given:
            raise SpecquantError(f"traces say what is accepted: leave out {', '.join(given)}")
        for chances in self.kinds_of_chances:
            for scheme in self.schemes:
                self.points(chances, scheme)

    @property
    def kinds_of_chances(self) -> list[str]:
        """What the `chances` column says, a kind after the other."""
        if self.traces:
            return ["traced"]
        return ["fitted", *(["planned"] if self.planned else []), *(["swept"] if self.sweep else [])]

    def same(self) -> dict[str, Any]:
        return super().same() | dtype_parameters(self.device, self.dtype)

    def unnamed(self) -> dict[str, Any]:
        return super().unnamed() | {"share_cache": False, "traced_scheme": None, "methods": []}

    def units(self) -> list[dict[str, Any]]:
        about: dict[str, Any] = {"model": Path(self.model).name, "weights": "synthetic"}
        about |= describe_head(self.head_scheme, self.head_vocabulary, synthetic_config(self.model))
        about |= {"intermediate": Path(self.intermediate).name if self.intermediate else "none"}
        about |= {"intermediate_scheme": self.intermediate_scheme}
        return [
            about | {"scheme": scheme, "chances": chances, "process": process}
            for chances in self.kinds_of_chances
            for process in range(self.processes)
            for scheme in self.schemes
        ]

    def synthetic(self, unit: dict[str, Any]) -> list[Synthetic]:
        context = self.prompt_length + 2 * self.new_tokens
        dtype = named_dtype(self.dtype) or default_dtype(self.device, unit["scheme"])
        models = [Synthetic(synthetic_config(self.model), unit["scheme"], context, dtype)]
        methods = {plan.method for plan, _ in self.points(unit["chances"], unit["scheme"])}
        if self.intermediate is not None and methods & {*methods_with("intermediate")}:
            room = 1 if self.share_cache else context
            models.append(Synthetic(synthetic_config(self.intermediate), self.intermediate_scheme, room, dtype))
        return models

    def points(self, chances: str, scheme: str) -> Sequence[tuple[Plan, Chances | Traces]]:
        """The plans to decode, each with chances of acceptance: the paper's with the fitted ones, the planner's
        with the same, or those that a sweep adds; or each of those that were traced, with the traces."""
        if chances == "traced":
            traces = Traces(read_results(cast(Path, self.traces), table="traces"), scheme, self.traced_scheme)
            return [(plan, traces) for plan in dict.fromkeys((Plan("autoregressive"), *self._traced(traces)))]
        shapes = Shapes.of(read_results(self.trees, table="trees"))
        length = self.hierarchical_length
        nodes, iterations = self.tree
        fitted = shapes.fitted_chances((nodes, iterations), self.accepted_length, hierarchical_length=length)
        paper, more = ([plan for plan in plans if self._has(plan)] for plans in (acceptance.PAPER_PLANS, MORE_PLANS))
        if chances == "fitted":
            return [(plan, fitted) for plan in paper]
        if chances == "planned":
            return [(plan, fitted) for plan in self._planned(scheme, fitted)]
        one_by_one = [plan for plan in paper if plan.method == "autoregressive"]
        others = [(plan, other) for plan in paper for other in _other_chances(plan, fitted)]
        return [(plan, fitted) for plan in (*one_by_one, *more)] + others

    def _planned(self, scheme: str, fitted: Chances) -> list[Plan]:
        """The fastest plan of each method, predicted from recorded costs under these chances; one by one comes first.
        Raises SpecquantError where the models were not timed so."""
        target, small = (Path(model).name if model is not None else None for model in (self.model, self.intermediate))
        given = {"head": fitted.head[0], "inner_head": fitted.inner_head[0], "agreement": fitted.agreement}
        told = plan_tables(
            cast(Path, self.planned), cast(str, target), small, scheme, self.head_scheme, given, self.trees
        )
        fastest = plans_in(told[self.head_scheme].drop_duplicates("method"))
        return sorted(filter(self._has, fastest), key=lambda plan: plan.method != "autoregressive")

    def _traced(self, traces: Traces) -> list[Plan]:
        """The plans to replay. Raises SpecquantError where one that is asked for cannot be, or there are none."""
        known = list(dict.fromkeys(plan.method for plan in traces.plans))
        for method in self.methods:
            if get_method(method).name not in known:
                raise SpecquantError(
                    f"{self.traces} holds no step of {method} in {traces.scheme}: choose of {', '.join(known)}, or "
                    "another --traced-scheme"
                )
            if not get_method(method).fits(self.share_cache):
                raise SpecquantError(f"{method} cannot share a cache (--share-cache): choose vanilla, or leave it out")
            if not self._has(Plan(method)):
                raise SpecquantError(f"{method} needs an intermediate model: name one (--intermediate)")
        plans = [plan for plan in traces.plans if self._has(plan) and plan.method in (self.methods or known)]
        if not plans:
            raise SpecquantError(
                f"{self.traces} holds no plan that these models can replay: trace eagle2, or name an intermediate "
                "model for vanilla and hierarchical"
            )
        for plan in plans:
            traces.require(plan)
        return plans

    def _has(self, plan: Plan) -> bool:
        """Whether the models of a plan are named, and cached as it can be."""
        named = self.intermediate is not None or plan.method not in methods_with("intermediate")
        return named and get_method(plan.method).fits(self.share_cache)


def _other_chances(plan: Plan, fitted: Chances) -> list[Chances]:
    """Chances beside the fitted ones, of what decides about one of the paper's plans."""
    if plan.method == "autoregressive":
        return []
    if plan.method == "eagle2":
        return [replace(fitted, head=[chance]) for chance in CHANCES]
    agreements = [replace(fitted, agreement=agreement) for agreement in AGREEMENTS]
    if plan.method == "vanilla":
        return agreements
    return [*agreements, *(replace(fitted, inner_head=[chance]) for chance in CHANCES[1::2])]


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Decode every plan of each unit in turn; each draft and pass is timed where it stands in decoding."""
    trees = read_results(parameters.trees, table="trees")
    for unit in units:
        target, *_ = made = parameters.synthetic(unit)
        models = SyntheticModels(
            parameters.model,
            parameters.intermediate,
            unit["scheme"],
            parameters.intermediate_scheme,
            parameters.head_scheme,
            parameters.head_vocabulary,
            context_length=target.context_length,
            dtype=target.dtype,
            device=parameters.device,
            seed=parameters.seed,
            share_cache=parameters.share_cache,
        )
        seed = later_seed(parameters.seed, unit["process"])
        points = parameters.points(unit["chances"], unit["scheme"])
        try:
            require_room(made, parameters.device)
            rows = replay_plans(models, trees, points, parameters.prompt_length, parameters.new_tokens, seed)
            yield unit, pd.DataFrame(rows)
        except NotEnoughMemory as error:
            yield unit, left_out(unit, error)
        del models
        free(parameters.device)


@dataclass
class SyntheticModels:
    """A target and an intermediate model with random weights, each with EAGLE heads; made when first needed.

    target, intermediate: names in `models.names.SHAPES`, or model directories whose shapes are taken. head_scheme,
    head_vocabulary: of the heads, see `synthetic_head`. share_cache: as in `TwoModels`. Raises NotEnoughMemory
    where a model does not fit the device.
    """

    target_name: str | Path
    intermediate_name: str | Path | None
    scheme: str
    intermediate_scheme: str = "w4a16-g128"
    head_scheme: str = "fp16"
    head_vocabulary: int | None = None
    context_length: int = 2048
    dtype: torch.dtype = torch.float16
    device: torch.device | str = "cuda"
    seed: int = 0
    share_cache: bool = False
    _heads: dict[tuple[str, str], DraftHead] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def target(self) -> Llama | GraphedLlama:
        return self._make(self.target_name, self.scheme)

    @cached_property
    def intermediate(self) -> Llama | GraphedLlama:
        if self.intermediate_name is None:
            raise SpecquantError("vanilla and hierarchical decoding need an intermediate model")
        return self._make(self.intermediate_name, self.intermediate_scheme)

    @property
    def head(self) -> DraftHead:
        return self.head_of("target")

    @property
    def inner_head(self) -> DraftHead:
        return self.head_of("intermediate")

    def head_of(self, which: str, kind: str = "eagle") -> DraftHead:
        """The head of the "target" or of the "intermediate" model; kind: as `Method.head`."""
        if (which, kind) not in self._heads:
            model = self.target if which == "target" else self.intermediate
            layers = layers_to_read(model.config.num_hidden_layers) if kind == "eagle3" else ()
            self._heads[which, kind] = synthetic_head(
                model.config, cast(Llama, model), self.head_scheme, self.head_vocabulary, self.seed, layers
            )
        return self._heads[which, kind]

    def speculator(self, plan: Plan, trees: pd.DataFrame | Traces) -> Speculator:
        """The decoder of a plan, whose trees take shapes from `trees` (`drafted_trees`), or whose drafts are traced."""
        method = get_method(plan.method)

        def trees_for(which: str) -> Drafter:
            traced = isinstance(trees, Traces)
            shapes = trees.trees(plan) if traced else tree_shapes(trees_of(trees, which), *plan.tree)
            head, vocab_size = self.head_of(which, method.head or "eagle"), self.target.config.vocab_size
            return ReplayedTrees(EagleDrafter(head, *plan.tree, vocab_size=vocab_size), shapes, self.device)

        decoder = assemble(plan, self, trees_for)
        if isinstance(trees, Traces) and isinstance(method, LookupMethod):
            with_replayed_lookups(decoder, trees.lookups(plan))
        return decoder

    def _make(self, name: str | Path, scheme: str) -> Llama | GraphedLlama:
        config = synthetic_config(name)
        return graphed(synthetic_model(config, scheme, self.context_length, self.dtype, self.device, self.seed))


def replay_plans(
    models: SyntheticModels,
    trees: pd.DataFrame,
    points: Sequence[tuple[Plan, Chances | Traces]],
    prompt_length: int = 512,
    new_tokens: int = 512,
    seed: int = 0,
) -> Iterator[dict]:
    """Decode a random prompt by each plan under its chances; a row of replayed.csv for each, as it is measured.

    Before its first row every plan decodes once without being timed, which captures its graphs. Times are milliseconds
    a step. head_chance, agreement: what is replayed at every depth, 0 where the plan has no such draft; nothing where
    traces are replayed, in their order. whole_drafts: the share of steps that accepted all of a draft.
    """
    config = synthetic_config(models.target_name)
    prompt = random_prompt(config.vocab_size, prompt_length, seed)
    speculators = {}
    for plan, chances in points:
        rule, told = _rule(plan, chances, seed)
        if plan not in speculators:
            speculators[plan] = models.speculator(plan, chances if isinstance(chances, Traces) else trees)
            first = min(16, new_tokens) if plan.method == "autoregressive" else new_tokens
            decode(speculators[plan], prompt, rule(), first)
        generation = decode(speculators[plan], prompt, rule(), new_tokens)
        whole = [len(step.path) == len(step.tree) - 1 > 0 for step in generation.steps]
        yield {
            "model": Path(models.target_name).name,
            "scheme": models.scheme,
            **asdict(plan),
            "task": "random tokens",
            "weights": "synthetic",
            **told,
            **describe_head(models.head_scheme, models.head_vocabulary, config),
            "intermediate": Path(models.intermediate_name).name if models.intermediate_name else "none",
            "intermediate_scheme": models.intermediate_scheme,
            "seed": seed,
            "context_length": prompt_length,
            **measurements(generation),
            "whole_drafts": sum(whole) / len(whole),
        }


def random_prompt(vocab_size: int, length: int, seed: int) -> list[int]:
    """So many random tokens."""
    return torch.randint(0, vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _rule(plan: Plan, chances: Chances | Traces, seed: int) -> tuple[Callable[[], Replay], dict[str, Any]]:
    """What makes a plan's rule, and what a row tells of it."""
    if isinstance(chances, Traces):
        sequences = chances.sequences(plan)
        told = {"acceptance": "traced", "head_chance": math.nan, "agreement": math.nan}
        return lambda: Replay([0.0], 0.0, seed, sequences), told
    method = get_method(plan.method)
    head = {"target": chances.head, "intermediate": chances.inner_head}.get(method.trees_of or "", [0.0])
    agreement = chances.agreement if "intermediate" in method.companions else 0.0
    told = {"acceptance": "replayed", "head_chance": round(head[0], 4), "agreement": agreement}
    return lambda: Replay(head, agreement, seed), told


def decode(
    speculator: Speculator, prompt: list[int], rule: Replay, new_tokens: int, ends: Callable[[], bool] = lambda: False
) -> Generation:
    """Decode until there are `new_tokens` tokens, or until `ends`, which is asked before each step. All tokens of the
    last step count."""
    decoded = decode_steps(speculator, prompt, rule, speculator.context_length - len(prompt))
    prefill = next(decoded)
    tokens = list(prefill.tokens)
    steps: list[Step] = []
    while len(tokens) < new_tokens and not ends():
        steps.append(next(decoded))
        tokens += steps[-1].tokens
    lengths = [step.accepted_length for step in steps]
    return Generation(tokens, "", "maximum new tokens", lengths, prefill.draft_ms + prefill.verify_ms, steps)


MEASURE = Measure((REPLAYED,), Parameters, run, "CUDA events and host clock, sum")
