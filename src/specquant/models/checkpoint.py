"""The weight files of a model directory: tensors by name, read one at a time."""

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from specquant.errors import SpecquantError
from specquant.models.fields import read_json, shown
from specquant.models.hub import PICKLE_FILE, PICKLE_SHARDS, QSERVE_FILE

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"
ENDS_OF = "ends_of"  # in an intermediate model's config.json: the model whose embedding and LM head it shares
# Behind the name of a matrix in integers: what groups of its columns are multiplied by, [rows, groups]. Integers of 4
# bits lie two in a byte, the first of them low, 8 added to each.
SCALES = {8: ":int8_scale", 4: ":int4_scale"}
GROUP = 64  # columns that share a scale, of heads in 8 bits
GGUF_INDEX = "gguf.json"  # in the directory of a GGUF file (`formats.gguf`): where it is, and its tensors in it
WEIGHT_FILES = ("*.safetensors", "*.bin", GGUF_INDEX)  # that change where a directory's weights do


def open_checkpoint(path: str | Path) -> "Checkpoint":
    """The tensors of a directory: of its safetensors files where there are any, else of pickled files; or those of the
    GGUF file that it was made of. With the embedding and the LM head of another model, where it names one. Matrices in
    integers with scales (`as_integers`) are read as the fp16 matrices that they stand for.

    Raises SpecquantError as `Checkpoint` does, and where the model that it names is not there or was rotated.
    """
    own, lender = _open_own(Path(path)), lender_of(path)
    if any(name.endswith(tuple(SCALES.values())) for name in own.shapes):
        own = ScaledIntegers(own)
    return own if lender is None else BorrowedEnds(own, lender)


def lender_of(path: str | Path) -> Path | None:
    """The directory of the model whose embedding and LM head the model in a directory shares (`ends_of` in its
    config.json: as `hub.locate` reads it, or relative to the directory); None where it has its own.

    Raises SpecquantError where that is not there.
    """
    named = named_lender(path)
    if named is None:
        return None
    from specquant.models.hub import locate

    advice = _advice_on_ends(path, str(named))
    try:
        lender = locate(named)
    except SpecquantError as error:
        raise SpecquantError(f"{advice}, which cannot be had: {error}") from None
    if not (lender / "config.json").is_file():
        raise SpecquantError(f"{advice}, and there is no such model: put it there, or correct the name")
    if lender_of(lender) is not None:
        raise SpecquantError(f"{advice}, which borrows them itself: name the model that has them")
    return lender


def named_lender(path: str | Path) -> str | Path | None:
    """The same as it is named: a directory, a hub id or a packaged name. Raises SpecquantError where it is no name."""
    config = Path(path) / "config.json"
    named = read_json(config).get(ENDS_OF) if config.is_file() else None
    if named is None:
        return None
    if not isinstance(named, str) or not named:
        advice = _advice_on_ends(path, named)
        raise SpecquantError(f"{advice}, which is no name: give a directory, a hub id or a packaged model's name")
    beside = Path(path) / named
    return beside if beside.exists() else named


def _advice_on_ends(path: str | Path, named: object) -> str:
    config = Path(path) / "config.json"
    return f"{config}: {ENDS_OF} names the model that has its embedding and LM head, {shown(named)}"


def _open_own(path: Path) -> "Checkpoint":
    if (path / GGUF_INDEX).is_file():
        from specquant.models.formats.gguf import GGUFCheckpoint

        return GGUFCheckpoint(path)
    if not any(path.glob("*.safetensors")):
        for name in (PICKLE_FILE, QSERVE_FILE):
            if (path / name).is_file():
                return PickledCheckpoint(path, name)
        if (path / PICKLE_INDEX_FILE).is_file() or any(path.glob(PICKLE_SHARDS)):
            return PickledCheckpoint(path)
    return Checkpoint(path)


class Checkpoint:
    """The tensors of a directory: `shapes` by name, from the files' headers, and `read` for their values.

    One file is open at a time, mapped into memory, so that the host holds no more than what is being read of it.
    Raises SpecquantError where files are missing, damaged, or not those that their index lists.
    """

    single_file, index_file, shards = SINGLE_FILE, INDEX_FILE, "*.safetensors"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        self._open: tuple[Path, safe_open] | None = None
        index = None if (self.path / self.single_file).is_file() else self._read_index()
        for file in self._find_files(index):
            for name, shape in self._read_header(file).items():
                if name in self._files:
                    raise SpecquantError(f"{self.path}: both {self._files[name].name} and {file.name} hold {name}")
                self._files[name], self.shapes[name] = file, shape
        if index is not None:
            self._check_against(index)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def read(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """A tensor of the checkpoint, on a device. On the CPU it may lie in the mapped file: do not change it."""
        file = self._files[name]
        try:
            if self._open is None or self._open[0] != file:
                self._open = None  # unmap the old file first
                self._open = file, safe_open(file, framework="pt", device=str(device))
            return self._open[1].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from None

    def _find_files(self, index: dict[str, str] | None) -> list[Path]:
        if (self.path / self.single_file).is_file():
            return [self.path / self.single_file]  # some directories hold the same weights in another layout as well
        if index is None:
            files = sorted(self.path.glob(self.shards))
            if not files:
                raise SpecquantError(f"{self.path} has no weights: no {self.shards} file is in it")
            return files
        names = sorted(set(index.values()))
        missing = [name for name in names if not (self.path / name).is_file()]
        if missing:
            raise SpecquantError(
                f"{self.path} is incomplete: {len(missing)} of its {len(names)} shards are missing, first {missing[0]}"
            )
        return [self.path / name for name in names]

    def _read_index(self) -> dict[str, str] | None:
        """Tensor -> name of its file, as the index says; None where there is no index."""
        file = self.path / self.index_file
        if not file.is_file():
            return None
        index = read_json(file).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise SpecquantError(f"{file} has no weight_map: copy it again")
        for name in index.values():
            if not (isinstance(name, str) and fnmatchcase(name, self.shards) and Path(name).name == name):
                kind = "safetensors" if self.shards == Checkpoint.shards else "PyTorch"
                raise SpecquantError(f"{file} names {shown(name)} for a shard, which is no {kind} file beside it")
        return index

    def _read_header(self, file: Path) -> dict[str, tuple[int, ...]]:
        try:
            with safe_open(file, framework="pt") as archive:
                return {name: tuple(archive.get_slice(name).get_shape()) for name in archive.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from None

    def _check_against(self, index: dict[str, str]) -> None:
        for name, file in index.items():
            if name not in self._files:
                raise SpecquantError(f"{self.path}: {file} has no tensor {name}, which {self.index_file} says it has")
            if self._files[name].name != file:
                raise SpecquantError(
                    f"{self.path}: {name} is in {self._files[name].name}, and {self.index_file} says in {file}: shards "
                    "of two versions are mixed; copy the directory again"
                )
        for name, file in self._files.items():
            if name not in index:
                raise SpecquantError(
                    f"{self.path}: {file.name} has a tensor {name}, which {self.index_file} does not list"
                )


class BorrowedEnds(Checkpoint):
    """The tensors of an intermediate model, with the embedding and the LM head of the model in `lender`."""

    def __init__(self, own: Checkpoint, lender: Path):
        self.path, self.own, self.lender = own.path, own, _open_own(lender)
        if any(name.endswith("feature_map") for name in self.lender.shapes):
            raise SpecquantError(f"{lender} was rotated, and {own.path} shares its embedding from before: name that")
        prefix = "model." if any(name.startswith("model.") for name in own.shapes) else ""
        self.borrowed = {}
        for name in ("embed_tokens.weight", "lm_head.weight"):
            theirs = next((there for there in (name, f"model.{name}") if there in self.lender), None)
            if theirs is not None:
                self.borrowed[name if name.startswith("lm_head") else prefix + name] = theirs
        self.shapes = own.shapes | {name: self.lender.shapes[theirs] for name, theirs in self.borrowed.items()}

    def read(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        if name in self.borrowed:
            return self.lender.read(self.borrowed[name], device)
        return self.own.read(name, device)


class ScaledIntegers(Checkpoint):
    """The tensors of a checkpoint, some of whose matrices `as_integers` made, as if these were in fp16."""

    def __init__(self, stored: Checkpoint):
        self.path, self.stored = stored.path, stored
        self.bits = {
            name.removesuffix(suffix): bits
            for bits, suffix in SCALES.items()
            for name in stored.shapes
            if name.endswith(suffix)
        }
        self.shapes = {
            name: shape for name, shape in stored.shapes.items() if not name.endswith(tuple(SCALES.values()))
        }
        for name, bits in self.bits.items():
            shape, scales = stored.shapes.get(name, ()), stored.shapes[name + SCALES[bits]]
            columns = shape[1] * 8 // bits if len(shape) == 2 else 0
            if not columns or len(scales) != 2 or scales[0] != shape[0] or not scales[1] or columns % scales[1]:
                raise SpecquantError(f"{self.path}: {name}{SCALES[bits]} fits no matrix: copy the directory again")
            self.shapes[name] = shape[0], columns

    def read(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        tensor = self.stored.read(name, device)
        if name not in self.bits:
            return tensor
        bits, (rows, columns) = self.bits[name], self.shapes[name]
        if tensor.dtype != (torch.int8 if bits == 8 else torch.uint8):
            raise SpecquantError(f"{self.path}: {name} is {tensor.dtype}, no {bits}-bit integers: copy it again")
        if bits == 4:
            tensor = torch.stack((tensor & 15, tensor >> 4), dim=-1).to(torch.int8) - 8
        scales = self.stored.read(name + SCALES[bits], device).float()
        return (tensor.float().view(rows, scales.shape[1], -1) * scales[..., None]).view(rows, columns).half()


def as_integers(name: str, tensor: torch.Tensor, bits: int, group: int | None = None) -> dict[str, torch.Tensor]:
    """A matrix rounded to integers with a scale for each `group` of a row's columns, as it is stored.

    Args:
        name: Of the matrix.
        tensor: It, [rows, columns].
        bits: 8 or 4.
        group: Columns of a group, by which all are divisible; None for whole rows.

    Returns:
        The two tensors, by name: integers, and scales in fp16.
    """
    rows, columns = tensor.shape
    groups = tensor.float().view(rows, -1, group or columns)
    most = 2 ** (bits - 1) - 1
    scales = (groups.abs().amax(dim=-1) / most).clamp(min=torch.finfo(torch.float16).tiny).half()
    integers = (groups / scales.float()[..., None]).round().clamp(-most - 1, most).view(rows, columns)
    if bits == 8:
        stored = integers.to(torch.int8)
    else:
        low, high = (integers + 8).to(torch.uint8).view(rows, -1, 2).unbind(-1)
        stored = low | (high << 4)
    return {name: stored, name + SCALES[bits]: scales}


def stored_with(bits: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as they are stored: in fp16; with 8 bits matrices as integers with a scale for every 64 of a row, or for
    a row whose columns are no multiple of that. Tensors that hold no fractions stay as they are."""
    stored = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous().cpu()
        if bits == 8 and tensor.dim() == 2:
            stored |= as_integers(name, tensor, bits, None if tensor.shape[1] % GROUP else GROUP)
        else:
            stored[name] = tensor.half() if tensor.is_floating_point() else tensor
    return stored


class PickledCheckpoint(Checkpoint):
    """The tensors of a `pytorch_model.bin`, in one file, as SafeAILab publishes EAGLE heads, or in shards with their
    index; or of QServe's `quant_model.pt`.

    Nothing but tensors is unpickled. All files are mapped into memory.
    """

    single_file, index_file, shards = PICKLE_FILE, PICKLE_INDEX_FILE, PICKLE_SHARDS

    def __init__(self, path: str | Path, name: str = PICKLE_FILE):
        self.single_file = name
        self._tensors: dict[str, torch.Tensor] = {}
        super().__init__(path)

    def read(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        return self._tensors[name].to(device)

    def _read_header(self, file: Path) -> dict[str, tuple[int, ...]]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a protocol that it may not read: then it says so
                tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except pickle.UnpicklingError:
            raise SpecquantError(
                f"{file} is damaged, or holds more than tensors, which this package never runs: give a directory with "
                "model.safetensors"
            ) from None
        except Exception as error:  # a torn archive raises one of many types
            raise _damaged(file, error) from None
        if not isinstance(tensors, dict) or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items()
        ):
            raise SpecquantError(f"{file} is no state dict: it holds something other than tensors by name")
        for name, tensor in tensors.items():
            if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
                kind = "meta, without numbers" if tensor.is_meta else "sparse, or of a kind of its own"
                raise SpecquantError(f"{file}: {name} is {kind}, and no ordinary tensor: save the model again")
        self._tensors |= tensors
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _damaged(file: Path, error: Exception) -> SpecquantError:
    kind = "safetensors" if file.suffix == ".safetensors" else "PyTorch"
    return SpecquantError(f"{file} is damaged or not a {kind} file ({error}): copy it again")


def shard_name(number: int, count: int) -> str:
    """Of the file with that number, from 1, of `count`."""
    return f"model-{number:05}-of-{count:05}.safetensors"


def write_shard(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write tensors into a safetensors file, whole or not at all. Raises OSError where it cannot be written."""
    unfinished = file.with_name(f".{file.name}.tmp")
    try:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, unfinished, {"format": "pt"})
        os.replace(unfinished, file)
    except SafetensorError as error:  # safetensors' own kind for a full disk
        raise OSError(None, str(error)) from None
    finally:
        unfinished.unlink(missing_ok=True)


def write_index(directory: Path) -> None:
    """List which shard of the directory holds which tensor."""
    places, size = {}, 0
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as archive:
            places |= dict.fromkeys(archive.keys(), file.name)
        with open(file, "rb") as content:
            header = int.from_bytes(content.read(8), "little")
        size += file.stat().st_size - 8 - header
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
