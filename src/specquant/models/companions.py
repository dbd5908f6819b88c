"""The models that draft for a target, by what they are to it. Every list of them follows from this one."""

from pathlib import Path

COMPANIONS = ("eagle_target", "intermediate", "eagle_intermediate", "eagle3_target", "eagle3_intermediate")


OWN = "self:"  # before the scheme of an intermediate model that is the target itself in fewer bits


def directories_beside(target: Path, intermediate: object = None) -> dict[str, Path]:
    """Where a target's companions lie if they lie beside it, whether they do or not.

    Args:
        target: A directory.
        intermediate: The model that was named as such; where that is the target itself, its heads are the target's.

    Returns:
        A directory for each of `COMPANIONS`.
    """
    names = {which: which.replace("_", "-") for which in COMPANIONS}
    names |= {f"{head}_target": f"{head}-{target.name}" for head in ("eagle", "eagle3")}
    if str(intermediate).startswith(OWN):
        names |= {which: names[which.replace("_intermediate", "_target")] for which in names if "_" in which}
    return {which: target.parent / name for which, name in names.items()}
