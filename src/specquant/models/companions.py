"""The models that draft for a target, by what they are to it. Every list of them follows from this one."""

from pathlib import Path

COMPANIONS = ("eagle_target", "intermediate", "eagle_intermediate")


def directories_beside(target: Path) -> dict[str, Path]:
    """Where a target's companions lie if they lie beside it, whether they do or not."""
    names = {which: which.replace("_", "-") for which in COMPANIONS} | {"eagle_target": f"eagle-{target.name}"}
    return {which: target.parent / name for which, name in names.items()}
