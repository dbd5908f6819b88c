"""All that the study needs of a model, made of text that it writes itself: heads, an intermediate model, a profile."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
import yaml
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from specquant.errors import SpecquantError
from specquant.files import read_text, require_new, require_writable, write_file
from specquant.models.checkpoint import lender_of
from specquant.models.companions import COMPANIONS, place_of
from specquant.models.config import load_config, longest_context
from specquant.models.device import choose_device
from specquant.models.digest import model_digest
from specquant.models.eagle import require_count
from specquant.models.hub import as_given, is_hub_id, locate
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.packaged import is_packaged
from specquant.models.targets import quantized_target, require_storable
from specquant.models.texts import tokens_of
from specquant.quant import get_scheme
from specquant.training.conversations import Asked, turns_of
from specquant.training.eagle3 import Eagle3Recipe, draft_vocab_size, layers_to_read, train_eagle3_head
from specquant.training.heads import HeadRecipe, features_of, head_config, stored_features, train_head
from specquant.training.options import HeadOptions, TrainingOptions
from specquant.training.saving import rounded, save_head, save_small
from specquant.training.small import SmallRecipe, choose_layers, distill
from specquant.training.transformer import load_trainable
from specquant.training.writing import Writing
from specquant.training.written import Written, with_features, write_text

# What was best of a few on SmolLM2 (data/smollm2/training.json).
HEAD = HeadRecipe()
HEAD = replace(HEAD, schedule=replace(HEAD.schedule, learning_rate=3e-3, muon=True))
EAGLE = HeadOptions()
SMALL = SmallRecipe(chosen="ends")
SMALL = replace(SMALL, schedule=replace(SMALL.schedule, learning_rate=4e-3))
CALIBRATION_ROWS = 24
MOST_MINUTES = 100_000
# Of the time of `prepare`; `make_head` and `make_small` divide theirs as two of them stand to each other.
SHARES = {"text": 0.3, "head": 0.25, "small": 0.3, "small_head": 0.15}


@dataclass(frozen=True)
class Size:
    """How much is done at once; smaller only in tests.

    Attributes:
        writing: How rows are written; they are no longer than the model's context.
        part_rows: Rows of a part of the text; None for what fits.
        step_rows: Rows of a training step; None for the recipes'.
    """

    writing: Writing = field(default=Writing(answer_tokens=256))
    part_rows: int | None = None
    step_rows: int | None = None


class Workshop:
    """A target, the folder of the text that it writes, and what is made of them.

    Args:
        model: The target: a directory, a hub id, a GGUF file or a packaged name.
        folder: For the text, its features and checkpoints; a later call goes on with what is there.
        prompts: A UTF-8 file with what users say first, one to a line; None: the target thinks of all.
        device: cuda or cpu; None for cuda where there is one.
        size: How much is done at once.

    Raises:
        SpecquantError: Something of these cannot be used, as the methods do.
    """

    def __init__(
        self, model: str | Path, folder: Path, prompts: Path | None, device: str | None, size: Size | None = None
    ):
        self.name, self.folder = model, folder
        self.device = torch.device(choose_device(device))
        self.size = size or Size()
        self.prompts = [] if prompts is None else prompts_of(prompts)
        self.directory = locate(model)
        self.config = load_config(self.directory)
        require_writable(folder)

    @classmethod
    def of(cls, model: str | Path, options: TrainingOptions) -> "Workshop":
        """That of a command. Raises as the class does."""
        return cls(model, options.folder, options.prompts, options.device)

    @cached_property
    def model(self) -> PreTrainedModel:
        return load_trainable(self.name, torch.float16 if self.device.type == "cuda" else torch.float32, self.device)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.directory)

    @cached_property
    def identity(self) -> str:
        """What tells the target from another one of the same name."""
        return model_digest(as_given(self.name)) or str(self.name)

    def write(self, minutes: float) -> None:
        """Have the target write text for so long, if the folder does not hold as much already."""
        writing = replace(self.size.writing, row_length=min(self.size.writing.row_length, longest_context(self.config)))
        digest = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        asked = [Asked(tokens_of(prompt, self.tokenizer, special=False)) for prompt in self.prompts]
        identity = {"model": self.identity, "prompts": digest}
        turns = turns_of(self.tokenizer, self.config)
        write_text(
            self.folder / "text",
            self.model,
            turns,
            writing,
            asked,
            60 * minutes,
            identity,
            most_rows=self.size.part_rows,
        )

    @cached_property
    def written(self) -> Written:
        return Written(self.folder / "text", self.device)

    def written_in(self, scheme: str) -> Written:
        """The text with the features of the target in a scheme, quantized on its calibration text or on this text."""
        if get_scheme(scheme).name == "fp16":
            return self.written
        text = place_of(self.name).parent / "calibration.txt"
        if not text.is_file():
            self.calibration_text(text := self.folder / "calibration.txt")
        device = self.device.type
        target = quantized_target(self.name, scheme, self.folder / "targets", device=device, calibration_text=text)
        model = load_model(target, device=device)
        turned_back = None if model.feature_map is None else model.feature_map.to(model.dtype)

        def features(tokens: torch.Tensor) -> torch.Tensor:
            known = model.prefill(tokens.to(self.device), model.new_cache(len(tokens)))
            return known if turned_back is None else known @ turned_back

        folder = self.folder / f"text-{target.name}"
        with_features(self.folder / "text", folder, features)
        return Written(folder, self.device)

    def calibration_text(self, out: Path) -> None:
        """Write some of the rows as text for `specquant quantize`."""
        rows = torch.linspace(0, len(self.written.tokens) - 1, min(CALIBRATION_ROWS, len(self.written.tokens))).long()
        texts = [self.tokenizer.decode(self.written.tokens[row]).replace("\f", " ") for row in rows]
        write_file(out, "\n\f\n".join(texts))

    def train_head(
        self, out: Path, minutes: float, head: HeadOptions = EAGLE, small: PreTrainedModel | None = None
    ) -> dict:
        """Train a head into a directory, the target's or the intermediate model's; returns `learn_to_draft`'s log."""
        name = f"{head.kind}-target" if small is None else f"{head.kind}-intermediate-{small.config.num_hidden_layers}"
        seconds, checkpoints = 60 * minutes, self.checkpoints()
        model = self.model if small is None else small
        if head.draft_vocabulary is not None:
            name += f"-{head.draft_vocabulary}-tokens"
        if head.kind == "eagle3":
            recipe3 = Eagle3Recipe(rows=self.size.step_rows or HEAD.rows, draft_vocab_size=head.draft_vocabulary)
            learned3, log = train_eagle3_head(name, model, self.written, recipe3, seconds, checkpoints)
            rounded(learned3).save(out, head.bits)
            return log
        recipe, written, features = replace(HEAD, rows=self.size.step_rows or HEAD.rows), self.written, stored_features
        if small is not None:
            features = features_of(small)
        elif get_scheme(head.scheme).name != "fp16":
            name, written = f"{name}-{get_scheme(head.scheme).name}", self.written_in(head.scheme)
        learned, log = train_head(name, model, written, features, recipe, seconds, checkpoints)
        save_head(rounded(learned), head_config(model.config), out, head.bits)
        return log

    def distill(self, layers: int, out: Path, minutes: float) -> tuple[PreTrainedModel, dict]:
        """Make an intermediate model of so many layers in a directory; returns it and what `small.distill` says."""
        recipe = replace(SMALL, layers=layers, rows=self.size.step_rows or SMALL.rows)
        small, log = distill(
            f"intermediate-{layers}", self.model, self.written, recipe, 60 * minutes, self.checkpoints()
        )
        save_small(rounded(small), self._name_from(out), out)
        return small, log

    def checkpoints(self) -> Path:
        """The folder of what an interrupted call goes on from. Raises SpecquantError where it is of another target."""
        folder = self.folder / "checkpoints"
        of = folder / "model.txt"
        if of.is_file() and read_text(of, "the digest of a model") != self.identity:
            raise SpecquantError(
                f"{folder} is of another model than {self.name} is now: remove it, or choose another --keep-in"
            )
        write_file(of, self.identity)
        return folder

    def _name_from(self, out: Path) -> str:
        """What the target is called from a directory: files by the way to them, so that both can move together."""
        lender = lender_of(self.directory)
        if lender is not None:
            return os.path.relpath(lender, out)
        if is_hub_id(self.name) or is_packaged(self.name):
            return str(self.name)
        return os.path.relpath(self.name, out)


def prompts_of(file: Path) -> list[str]:
    """The lines of a file that are not empty. Raises SpecquantError where there are none."""
    lines = [line.strip() for line in read_text(file, "prompts").splitlines()]
    if not any(lines):
        raise SpecquantError(f"{file} holds no prompts: write one to a line")
    return [line for line in lines if line]


def check_minutes(minutes: float) -> float:
    """Raises SpecquantError where so many minutes are no time."""
    if not (math.isfinite(minutes) and 0 < minutes <= MOST_MINUTES):
        raise SpecquantError(f"--minutes is {minutes:g}: give a number above 0, and at most {MOST_MINUTES}")
    return minutes


def check_head(head: HeadOptions, config: PreTrainedConfig, layers: int) -> None:
    """Raises SpecquantError where a model of so many layers has no such head."""
    require_storable(head.scheme, config)
    if head.bits not in (8, 16):
        raise SpecquantError(f"--bits is {head.bits}: heads are stored in 16 or in 8 bits")
    if head.kind == "eagle3":
        if get_scheme(head.scheme).name != "fp16":
            raise SpecquantError("--scheme is for --kind eagle: EAGLE-3 heads learn on the unquantized target alone")
        layers_to_read(layers)
        require_count(draft_vocab_size(head.draft_vocabulary, config.vocab_size), config.vocab_size)
    elif head.draft_vocabulary is not None:
        raise SpecquantError("--draft-vocabulary is for --kind eagle3: other heads draft all tokens")


def make_head(shop: Workshop, out: Path, minutes: float, kind: HeadOptions = EAGLE) -> dict:
    """Have a target write, and train its EAGLE head.

    Args:
        shop: The target, and where its text lies.
        out: The directory to make.
        minutes: For all of it.
        kind: Of head.

    Returns:
        What `heads.learn_to_draft` says of it.

    Raises:
        SpecquantError: `out` is not empty, or as `Workshop` says.
    """
    require_new(out)
    text, head = (share * check_minutes(minutes) for share in _parts("text", "head"))
    check_head(kind, shop.config, shop.config.num_hidden_layers)
    shop.write(text)
    return shop.train_head(out, head, kind)


def make_small(shop: Workshop, layers: int, out: Path, minutes: float) -> dict:
    """Have a target write, and make a model of some of its layers. Arguments and errors are `make_head`'s."""
    require_new(out)
    text, small = (share * check_minutes(minutes) for share in _parts("text", "small"))
    choose_layers(layers, shop.config.num_hidden_layers, SMALL.chosen)
    shop.write(text)
    return shop.distill(layers, out, small)[1]


def prepare(
    shop: Workshop,
    layers: int,
    out: Path,
    minutes: float,
    say: Callable[[str], None],
    heads: HeadOptions = EAGLE,
) -> Path:
    """Make all of a target's companions, a calibration text and a profile; what is there already stays.

    Args:
        shop: The target, and where its text lies.
        layers: Of the intermediate model.
        out: The folder of all.
        minutes: For all of it.
        say: Told what is done.
        heads: The kind of both heads.

    Returns:
        The profile.

    Raises:
        SpecquantError: As `make_head` and `make_small` do.
    """
    check_minutes(minutes)
    choose_layers(layers, shop.config.num_hidden_layers, SMALL.chosen)
    check_head(heads, shop.config, layers)  # which are no more than the target has
    shop.write(SHARES["text"] * minutes)
    shop.calibration_text(out / "calibration.txt")
    log = shop.train_head(out / f"{heads.kind}-target", SHARES["head"] * minutes, heads)
    say(f"the EAGLE head has {_percent(log['accuracy'])} of held-out tokens right, by depth")
    small, log = shop.distill(layers, out / "intermediate", SHARES["small"] * minutes)
    say(f"the intermediate model has the target's greedy token in {_percent([log['agreement']])} of held-out positions")
    log = shop.train_head(out / f"{heads.kind}-intermediate", SHARES["small_head"] * minutes, heads, small)
    say(f"its EAGLE head has {_percent(log['accuracy'])} of held-out tokens right, by depth")
    return write_profile(shop, out)


def write_profile(shop: Workshop, out: Path) -> Path:
    """Write what `specquant study` and notebooks take of the target and its companions."""
    values = {"model": Path(str(shop.name)).name, "target": str(as_given(shop.name))}
    made = {which: out / which.replace("_", "-") for which in COMPANIONS}
    values |= {which: str(path.absolute()) for which, path in made.items() if path.is_dir()}
    values["calibration_text"] = str((out / "calibration.txt").absolute())
    on_gpu = shop.device.type == "cuda"
    values |= {"dtype": "float16" if on_gpu else "float32", "device": "cuda" if on_gpu else "cpu"}
    return write_file(out / "profile.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _parts(*names: str) -> list[float]:
    total = sum(SHARES[name] for name in names)
    return [SHARES[name] / total for name in names]


def _percent(shares: list[float]) -> str:
    return " ".join(f"{100 * share:.0f}%" for share in shares)
