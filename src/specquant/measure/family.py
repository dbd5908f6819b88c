"""A target and the models that draft for it, as the notebooks' parameters name them, in one scheme after another."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from specquant.decoding.drafters import METHODS, PAPER_METHODS, get_method
from specquant.decoding.models import Models
from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.models.companions import COMPANIONS
from specquant.models.config import load_config, longest_context
from specquant.models.device import choose_device, named_dtype
from specquant.models.hub import SMALL_FILES, is_hub_id, locate, resolve_model
from specquant.models.llama import Llama
from specquant.models.loading import load_tokenizer, require_memory, stored_scheme
from specquant.models.memory import NotEnoughMemory
from specquant.models.quantize import CALIBRATION_TEXT
from specquant.models.targets import possible_schemes, quantized_target

MOST_POSITIONS = 4096  # of prompt and answer in notebooks: room for 128,000 would leave little for weights


@dataclass(frozen=True)
class Family:
    """The models of a study: directories, relative ones below the project root, or hub ids; "" where there is none.

    target: fp16 weights, of which copies in other schemes are made below `keep_in`, or already in a scheme, by whatever
    tool. The others are fp16. dtype: that models compute in. calibration_text: what copies are quantized on, a file.
    Raises SpecquantError where a model is missing or does not fit the others, which configurations and tokenizers say,
    before anything large is downloaded or loaded.
    """

    target: str
    eagle_target: str = ""
    intermediate: str = ""
    eagle_intermediate: str = ""
    keep_in: str = "results/targets"
    dtype: str = "float64"
    device: str = "cpu"
    calibration_text: str = CALIBRATION_TEXT
    eagle3_target: str = ""
    eagle3_intermediate: str = ""

    def __post_init__(self):
        choose_device(self.device)
        named_dtype(self.dtype)
        load_config(locate(resolve_model(self.target), SMALL_FILES))
        models = self._models(self.target)
        for name, method in METHODS.items():
            if all(models.paths[which] for which in method.companions):
                models.check_companions(name)

    @property
    def companions(self) -> dict[str, str]:
        """Those of `COMPANIONS` that a study may name, "" where there is none."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in COMPANIONS}

    @property
    def shipped(self) -> bool:
        """Whether the target is the one that comes with the project, on which the notebooks' findings were made."""
        return not is_hub_id(self.target) and resolve(self.target) == resolve("data/tiny/target")

    @cached_property
    def stored(self) -> str:
        """The scheme in which the target is stored."""
        path = locate(resolve_model(self.target))
        return stored_scheme(load_config(path), path)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(resolve_model(self.target))

    def schemes(self, names: str) -> list[str]:
        """The schemes to study, of those that `quant.scheme_names` reads; the first is what others are compared with.

        Of a target that is quantized already its own alone. A scheme in which the target does not fit the device is
        left out, and with "all" one that the target cannot have (`targets.possible_schemes`), and the reason printed.
        Raises SpecquantError where none remains, or for a named one that it cannot have.
        """
        possible = possible_schemes(names, self.target)
        if self.stored != "fp16":
            return possible
        fitting = []
        for scheme in possible:
            try:
                self._require_memory(scheme)
                fitting.append(scheme)
            except NotEnoughMemory as error:
                print(f"{scheme} is left out: {error}")
        if not fitting:
            raise SpecquantError(f"{self.target} does not fit {self.device} in any scheme of {names}")
        return fitting

    def methods(self, names: Sequence[str] = PAPER_METHODS) -> list[str]:
        """Those of `names` whose models are named; of each other one, what is missing is printed."""
        given = []
        for method in names:
            missing = [which for which in get_method(method).companions if not self.companions.get(which)]
            if missing:
                print(f"{method} is left out: no {' and no '.join(missing)} is named")
            else:
                given.append(method)
        return given

    def directory(self, scheme: str, method: str = "calibrated") -> Path:
        """Of the target in a scheme (`targets.quantized_target`)."""
        return quantized_target(self.target, scheme, self.keep_in, method, self.device, self.calibration_text)

    def models(self, scheme: str, method: str = "calibrated") -> Models:
        """The family with its target in that scheme. Give up the last one before: large ones do not fit beside it."""
        gc.collect()
        return self._models(self.directory(scheme, method))

    def _models(self, target: str | Path) -> Models:
        companions: dict[str, Any] = {
            which: resolve_model(path) if path else None for which, path in self.companions.items()
        }
        return Models(
            resolve_model(target),
            **companions,
            dtype=getattr(torch, self.dtype),
            device=self.device,
            context_length=self._context_length,
        )

    @cached_property
    def _context_length(self) -> int:
        """As long as target and intermediate model can both run."""
        paths = [resolve_model(path) for path in (self.target, self.intermediate) if path]
        return min(MOST_POSITIONS, *(longest_context(load_config(locate(path, SMALL_FILES))) for path in paths))

    def _require_memory(self, scheme: str) -> None:
        config = load_config(locate(resolve_model(self.target), SMALL_FILES))
        with torch.device("meta"):
            model = Llama(config, scheme, self._context_length)
        require_memory(model, getattr(torch, self.dtype), self.device, self.target)
