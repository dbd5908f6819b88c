"""What the parameters of every question have in common, and are checked for before anything is measured."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from specquant.errors import SpecquantError
from specquant.files import resolve, sha256_of
from specquant.kernels.launch import triton
from specquant.measure.checks import require_at_least, require_rest, require_short
from specquant.models.companions import COMPANIONS
from specquant.models.device import choose_device, gpu_is_available, named_dtype
from specquant.models.digest import DIGEST, digests_of
from specquant.models.options import DType
from specquant.models.synthetic import Synthetic
from specquant.quant import get_scheme
from specquant.tables.provenance import device_name

# The lowest values of parameters that several questions have.
LOWEST = {"processes": 1, "blocks": 1, "repeats": 1, "warm_up_passes": 1, "warm_up_ms": 0, "threads": 1}
MOST_THREADS = 1024
LOWEST |= {"context_length": 1, "context": 1, "prompts_per_task": 1, "max_new_tokens": 1}


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every measurement takes. A question's own parameters are a subclass, a frozen dataclass.

    Its fields are the options of the question's command, and this list of them is their help (`commands.measures`).

    Attributes:
        device: cuda or cpu (default: cuda where there is one).
        threads: Of the processor (default: as many as torch takes).
    """

    device: str = ""
    threads: int | None = None

    # How often a row is measured. Not annotated: a field of the same name in a subclass then has its own place.
    repeats = 1
    shared: ClassVar[tuple[str, ...]] = ()  # the names of the parameters that all rows of one table must share

    def __post_init__(self) -> None:
        if self.device is None or isinstance(self.device, str):  # else `check` says so
            object.__setattr__(self, "device", choose_device(self.device))
        for name, kind in get_type_hints(type(self)).items():
            if _is_path(kind) and isinstance(getattr(self, name), str):  # of a notebook, or of JSON
                object.__setattr__(self, name, Path(getattr(self, name)))

    def check(self) -> None:
        """Raises SpecquantError, before anything is measured, for a value of a wrong type or out of its range."""
        require_types(self)
        require_at_least(self, **{name: least for name, least in LOWEST.items() if hasattr(self, name)})
        if self.threads is not None and self.threads > MOST_THREADS:
            raise SpecquantError(f"threads is {self.threads}: give 1 to {MOST_THREADS}")
        for name in ("warm_up_ms", "delay_ms"):
            require_short(name, getattr(self, name, 0))
        require_rest(getattr(self, "rest_over_run", 0))
        named_dtype(getattr(self, "dtype", None))
        for scheme in getattr(self, "schemes", ()):
            get_scheme(scheme)

    def same(self) -> dict[str, Any]:
        """What all rows of one table must share: also the content of files, for two may have one name."""
        shared = {name: getattr(self, name) for name in self.shared}
        return shared | {"device": device_name(self.device)} | self.contents()

    def unnamed(self) -> dict[str, Any]:
        """What parameters were in tables that do not name them, since they could not be chosen then."""
        return self.contents()

    def model_paths(self) -> dict[str, str | Path]:
        """The models that are measured, by what the table calls them."""
        named = (getattr(self, name, None) for name in ("model", "intermediate"))
        return {Path(model).name: model for model in named if model}

    def by_name_alone(self, told: Mapping[str, Any], models: Collection[str]) -> list[str]:
        """The models and files that a table's older rows are perhaps not of: it did not tell those of one name apart.

        Args:
            told: The parameters that the table names.
            models: What its rows are of.
        """
        names = [name for name in self.contents() if name not in told]
        if any(name.startswith(DIGEST) for name in told):  # then it only has no rows yet of those that it lacks
            return [name for name in names if not name.startswith(DIGEST)]
        known = {f"{DIGEST}{model}" for model in (*models, "target", *COMPANIONS)}
        return [name for name in names if not name.startswith(DIGEST) or name in known]

    def contents(self) -> dict[str, Any]:
        """The SHA-256 of each parameter that is a file, as NAME_sha256, and the digests of models (`models.digest`)."""
        paths = {name: getattr(self, name) for name, kind in get_type_hints(type(self)).items() if _is_path(kind)}
        files = {name: path for name, path in paths.items() if path and resolve(path).is_file()}
        return {f"{name}_sha256": sha256_of(path) for name, path in files.items()} | digests_of(self.model_paths())

    def units(self) -> list[dict[str, Any]]:
        """The units of work, those of one process after each other."""
        raise NotImplementedError

    def synthetic(self, unit: dict[str, Any]) -> list[Synthetic]:
        """The synthetic models that a unit needs together, the target first."""
        return []


@dataclass(frozen=True, kw_only=True)
class OnGpu(Common):
    """Parameters of what only a GPU's times say something about.

    Attributes:
        device: cuda; on a cpu, if that is asked for, references run.
    """

    device: str = "cuda"

    def __post_init__(self) -> None:
        """Nothing is chosen: `check` refuses a GPU that is not there."""

    def check(self) -> None:
        """Raises SpecquantError as `Common.check`, and where there is no GPU."""
        super().check()
        if self.device != "cpu":
            require_gpu(self.device)


def require_gpu(device: str) -> None:
    """Raises SpecquantError where kernels cannot run on `device`."""
    if device != "cuda":
        choose_device(device)  # refuses what names no device at all
    if triton is None or not gpu_is_available() or device != "cuda":
        raise SpecquantError(
            f"kernels are measured on an NVIDIA GPU with Triton, and {device} here is none: run this where there is one"
        )


def require_types(parameters: Any) -> None:
    """Raises SpecquantError that names the first field of a dataclass whose value is not of the field's type."""
    hints = get_type_hints(type(parameters))
    for field in fields(parameters):
        require_type(field.name, getattr(parameters, field.name), hints[field.name])


def require_type(name: str, value: Any, kind: Any, least: float | None = None) -> None:
    """Raises SpecquantError where a value is not of a type, as annotations write it, or is below `least`."""
    if not _is_of(value, kind):
        raise SpecquantError(f"{name} is {value!r}: give {_told(kind)}")
    if least is not None and value < least:
        raise SpecquantError(f"{name} is {value}: give at least {least}")
    if is_dataclass(value):
        require_types(value)


def from_json(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass from what JSON made of its `asdict`: lists become tuples, and objects the dataclasses that they were.

    Args:
        kind: the dataclass.
        values: its fields.
    """
    hints = get_type_hints(kind)

    def restored(name: str, value: Any) -> Any:
        if isinstance(value, dict) and is_dataclass(hints[name]):
            return from_json(hints[name], value)  # type: ignore[arg-type]
        return _tuples(value)

    return kind(**{name: restored(name, value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _is_path(kind: Any) -> bool:
    return kind in (Path, Path | None)


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_is_of(value, each) for each in get_args(kind))
    if kind == DType:
        return isinstance(value, str)  # `named_dtype` says which there are
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        each = get_args(kind)
        if not isinstance(value, tuple):
            return False
        kinds = each[:1] * len(value) if each[-1] is ... else each
        return len(kinds) == len(value) and all(map(_is_of, value, kinds))
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _told(kind: Any) -> str:
    """A type in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    words[NoneType] = "nothing"
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words |= {each: " or ".join(get_args(each)) for each in kinds if get_origin(each) is Literal}
    return " or ".join(words.get(each, "a list" if get_origin(each) is tuple else str(each)) for each in kinds)
