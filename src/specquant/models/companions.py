"""The models that draft for a target, by what they are to it. Every list of them follows from this one."""

from pathlib import Path

from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models.packaged import PACKAGED, is_packaged

COMPANIONS = ("eagle_target", "intermediate", "eagle_intermediate", "eagle3_target", "eagle3_intermediate")


OWN = "self:"  # before the scheme of an intermediate model that is the target itself in fewer bits


def is_own(intermediate: object) -> bool:
    """Whether an intermediate model that was named is the target itself in fewer bits."""
    return str(intermediate).startswith(OWN)


def directories_beside(target: Path | str, intermediate: object = None) -> dict[str, Path]:
    """Where a target's companions lie if they lie beside it, whether they do or not.

    Those of a packaged model are the project's own: they lie in its `data/NAME`, as if the target were there.

    Args:
        target: A directory, or a packaged model's name.
        intermediate: The model that was named as such; where that is the target itself, its heads are the target's.

    Returns:
        A directory for each of `COMPANIONS`.
    """
    place = place_of(target)
    names = {which: which.replace("_", "-") for which in COMPANIONS}
    names |= {f"{head}_target": f"{head}-{place.name}" for head in ("eagle", "eagle3")}
    if is_own(intermediate):
        names |= {which: names[which.replace("_intermediate", "_target")] for which in names if "_" in which}
    return {which: place.parent / name for which, name in names.items()}


def target_in(root: Path | str) -> Path | str:
    """The target of a family in a folder: `root/target`, or the packaged model whose companions lie there."""
    inside = Path(root) / "target"
    return next((name for name in PACKAGED if is_packaged(name) and place_of(name) == inside), inside)


def place_of(target: Path | str) -> Path:
    """The directory that a target's companions lie beside: its own, or `data/NAME/target` for a packaged model."""
    if not is_packaged(target):
        return Path(target)
    try:
        return project_root() / "data" / str(target) / "target"
    except SpecquantError:  # installed without the clone: nothing lies beside it
        return Path(target) / "target"
