"""The models that draft for a target, by what they are to it. Every list of them follows from this one."""

from pathlib import Path

from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models.packaged import is_packaged

COMPANIONS = ("eagle_target", "intermediate", "eagle_intermediate")


def directories_beside(target: Path | str) -> dict[str, Path]:
    """Where a target's companions lie if they lie beside it, whether they do or not.

    Those of a packaged model are the project's own: they lie in its `data/NAME`, as if the target were there.
    """
    target = place_of(target)
    names = {which: which.replace("_", "-") for which in COMPANIONS} | {"eagle_target": f"eagle-{target.name}"}
    return {which: target.parent / name for which, name in names.items()}


def place_of(target: Path | str) -> Path:
    """The directory that a target's companions lie beside: its own, or `data/NAME/target` for a packaged model."""
    if not is_packaged(target):
        return Path(target)
    try:
        return project_root() / "data" / str(target) / "target"
    except SpecquantError:  # installed without the clone: nothing lies beside it
        return Path(target) / "target"
