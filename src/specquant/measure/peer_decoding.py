"""How fast does transformers decode the same model, one by one and by prompt lookup, beside us?

The same weights, in float16 on a GPU, one sequence at a time. Trained weights answer prompts; random ones of true size
follow random tokens. Times are without the prefill.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from specquant.benchmarks.prompts import PROMPTS, prompt_ids, read_prompts
from specquant.decoding import Greedy, Speculator
from specquant.decoding.drafters.prompt_lookup import PromptLookupDrafter
from specquant.decoding.generation import decode_steps
from specquant.measure.blocks import now
from specquant.measure.card import CardState
from specquant.measure.checks import require_at_least
from specquant.measure.measure import Measure, Measured, free
from specquant.measure.parameters import Common
from specquant.models.graphs import graphed
from specquant.models.llama import Llama
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.names import SHAPES, source_of
from specquant.models.synthetic import synthetic_config, synthetic_model
from specquant.models.weights import HuggingFaceWeights
from specquant.tables.schemas import TABLES
from specquant.tables.speed import speed

ONE_BY_ONE, LOOKUP = "autoregressive", "prompt-lookup"
OURS, EAGER, STATIC = "specquant", "transformers", "transformers, static cache"
DRAFT_TOKENS, NGRAM_LENGTH = 10, 3  # of prompt lookup, in both


@dataclass(frozen=True)
class Parameters(Common):
    """What to decode.

    Attributes:
        model: llama-3-8b or llama-3-70b, random weights of its shapes; or a model with weights of its own, in fp16.
        prompts: What a model with weights of its own continues, a JSON-lines file.
        prompts_per_task: Of each task of these.
        new_tokens: To decode behind each prompt.
        prompt_length: Of random prompts, in tokens.
        processes: Fresh interpreters, for intervals.
        seed: Of random weights and prompts.
    """

    model: str | Path
    prompts: Path = Path(PROMPTS)
    prompts_per_task: int = 1
    new_tokens: int = 128
    prompt_length: int = 512
    processes: int = 3
    seed: int = 0

    shared = ("prompts_per_task", "new_tokens", "prompt_length", "seed")

    def check(self) -> None:
        """Raises SpecquantError for an unknown model, prompts that are none, and numbers out of range."""
        super().check()
        require_at_least(
            self, new_tokens=DRAFT_TOKENS + 2, prompt_length=1, seed=0
        )  # a first step may give all but one
        synthetic_config(self.source)
        if self.source not in SHAPES:
            read_prompts(self.prompts, self.prompts_per_task)

    @property
    def source(self) -> str | Path:
        """A name in SHAPES, or where the model is."""
        return source_of(self.model)

    def units(self) -> list[dict[str, Any]]:
        synthetic = self.source in SHAPES
        ways = [(OURS, ONE_BY_ONE), (EAGER, ONE_BY_ONE), (STATIC, ONE_BY_ONE)]
        ways += [] if synthetic else [(OURS, LOOKUP), (EAGER, LOOKUP)]
        about = {"model": Path(self.model).name, "scheme": "fp16", "weights": "synthetic" if synthetic else "trained"}
        return [
            about | {"implementation": implementation, "method": method, "process": process}
            for process in range(self.processes)
            for implementation, method in ways
        ]

    def load(self, context_length: int) -> Llama:
        """The model, in float16 on a GPU and in float32 elsewhere."""
        dtype = torch.float16 if self.device == "cuda" else torch.float32
        if self.source in SHAPES:
            config = synthetic_config(self.source)
            return synthetic_model(config, "fp16", context_length, dtype, torch.device(self.device), self.seed)
        return load_model(self.source, None, dtype, self.device, context_length)

    def token_ids(self) -> list[list[int]]:
        """The prompts' tokens."""
        if self.source in SHAPES:
            vocab_size = synthetic_config(self.source).vocab_size
            return [np.random.default_rng(self.seed).integers(vocab_size, size=self.prompt_length).tolist()]
        tokenizer = load_tokenizer(self.source)
        return [prompt_ids(each["prompt"], tokenizer) for each in read_prompts(self.prompts, self.prompts_per_task)]


class Decoded(NamedTuple):
    """What one prompt took, without its prefill: new tokens behind the first, passes of the model, milliseconds."""

    tokens: int
    passes: int
    time_ms: float


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Decode every prompt in each unit's way. All come once before, which compiles and captures."""
    prompts = parameters.token_ids()
    room = max(map(len, prompts)) + parameters.new_tokens + DRAFT_TOKENS + 1
    for unit in units:
        model = parameters.load(room)
        decode = ours if unit["implementation"] == OURS else by_transformers
        with torch.inference_mode(), CardState(torch.device(parameters.device)) as card:
            of_prompt = decode(model, unit, parameters.new_tokens)
            _, decoded = [[of_prompt(prompt) for prompt in prompts] for _ in ("to compile", "timed")]
        tokens, passes, time_ms = (sum(each) for each in zip(*decoded, strict=True))
        row = {"prompts": len(prompts), "context_length": round(np.mean([len(prompt) for prompt in prompts]))}
        row |= {"new_tokens": tokens, "passes": passes, "accepted_length": tokens / passes, "decode_ms": time_ms}
        yield unit, pd.DataFrame([row | {"tokens_per_s": speed(tokens, time_ms)} | card.mean()])
        del model, of_prompt
        free(parameters.device)


def ours(model: Llama, unit: dict[str, Any], new_tokens: int) -> Callable[[list[int]], Decoded]:
    """What decodes a prompt by this project."""
    target = graphed(model)
    drafter = None
    if unit["method"] == LOOKUP:
        size, room = target.config.vocab_size, target.context_length
        drafter = PromptLookupDrafter(size, room, target.device, NGRAM_LENGTH, DRAFT_TOKENS)
    speculator = Speculator(target, drafter)

    def decode(prompt: list[int]) -> Decoded:
        steps = decode_steps(speculator, prompt, Greedy(), new_tokens)
        next(steps)
        began = now(target.device)
        lengths = [len(step.tokens) for step in steps]
        return Decoded(sum(lengths), len(lengths), 1e3 * (now(target.device) - began))

    return decode


class _Stopwatch(BaseStreamer):
    """When each step of `generate` had ended, and how many tokens it gave; the prompt comes first, at once."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.steps.append((perf_counter(), value.numel()))  # which was brought to the host: the device has done it

    def end(self) -> None:
        pass


def by_transformers(model: Llama, unit: dict[str, Any], new_tokens: int) -> Callable[[list[int]], Decoded]:
    """What decodes a prompt by transformers' `generate`. With a static cache, it compiles the model on a GPU, for all
    prompts alike: the cache has one size."""
    room = model.context_length
    theirs: Any = as_transformers(model)
    theirs.generation_config.eos_token_id = None  # ours does not stop at an end token either
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": new_tokens}
    if unit["implementation"] == STATIC:
        how |= {"cache_implementation": "static", "max_cache_len": room}
    if unit["method"] == LOOKUP:
        how |= {"prompt_lookup_num_tokens": DRAFT_TOKENS, "max_matching_ngram_size": NGRAM_LENGTH}

    def decode(prompt: list[int]) -> Decoded:
        watch = _Stopwatch()
        ids = torch.tensor([prompt], device=theirs.device)
        theirs.generate(ids, attention_mask=torch.ones_like(ids), streamer=watch, pad_token_id=0, **how)
        _, (began, _), *steps = watch.steps
        return Decoded(sum(tokens for _, tokens in steps), len(steps), 1e3 * (steps[-1][0] - began))

    return decode


def as_transformers(model: Llama) -> PreTrainedModel:
    """Transformers' model of the same configuration with our model's weights, which are taken from it.

    Args:
        model: in fp16. It is of no use afterwards.

    Returns:
        The model, where ours was, in its dtype.
    """
    names = HuggingFaceWeights((), model.config, model.scheme)  # type: ignore[arg-type]  # no checkpoint is looked at
    dtype = model.embed_tokens.weight.dtype
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        sources = names.sources(name, tuple(tensor.shape))
        parts = tensor.to(dtype).split([rows for rows, *_ in sources.values()])
        state |= dict(zip(sources, parts, strict=True))
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(model.config, dtype=dtype)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    lacking = theirs.load_state_dict(state, strict=False, assign=True)
    assert set(lacking.missing_keys) <= tied, lacking
    assert not lacking.unexpected_keys, lacking
    theirs.tie_weights()
    with torch.device(model.device):
        theirs.model.rotary_emb = type(theirs.model.rotary_emb)(model.config)  # whose tables are no weights
    return theirs.eval()


MEASURE = Measure((TABLES["peer_decoding"],), Parameters, run, "host clock around whole texts, prefill left out")
