"""`bench`: measure one thing at length and record it. Commands of other measurements are made from `measure/`."""

from pathlib import Path

from specquant.commands.options import tell
from specquant.models.options import DType

TINY = Path("data/tiny")


def throughput(
    *,
    models_dir: Path = TINY,
    schemes: tuple[str, ...] = ("all",),
    prompts_per_task: int | None = None,
    max_new_tokens: int = 64,
    dtype: DType = "float64",
    device: str = "cpu",
    row_invariant: bool = False,
    against: DType | None = None,
    out: Path = Path("results/throughput"),
) -> None:
    """Every method on trained models, scheme by scheme.

    Args:
        models_dir: The folder of a target and its companions.
        schemes: Of the target, with commas.
        prompts_per_task: How many prompts of each task (default: all).
        max_new_tokens: The most tokens behind a prompt.
        dtype: What models compute in.
        device: cuda or cpu.
        row_invariant: No row's bits depend on how many others its pass has.
        against: Compare tokens with those of this dtype (default: its own).
        out: The folder for the tables.
    """
    from specquant.models.device import choose_device
    from specquant.study.record import record_throughput

    paths = record_throughput(
        models_dir,
        _schemes_of_the_target(schemes, models_dir),
        out,
        keep_targets_in="results/targets",
        prompts_per_task=prompts_per_task,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=choose_device(device),
        row_invariant=row_invariant,
        against=against,
    )
    print(*paths, sep="\n")


def kernels(
    *,
    models: tuple[str, ...] = ("all",),
    schemes: tuple[str, ...] = ("all",),
    tune: float = 0,
    row_invariant: bool = False,
    out: Path = Path("results/kernels"),
) -> None:
    """Every linear product of Llama-3's shapes, on an NVIDIA GPU.

    Args:
        models: Whose shapes, with commas.
        schemes: With commas.
        tune: Seconds to look for better configurations first.
        row_invariant: The kernels that give a token the same bits in every draft.
        out: The folder for the tables.
    """
    from specquant.experiments.kernels import LAYERS, bench_schemes
    from specquant.quant import scheme_names
    from specquant.study.record import record_kernels, record_row_invariance

    chosen = list(LAYERS) if models == ("all",) else list(models)
    in_schemes = bench_schemes() if schemes == ("all",) else scheme_names(",".join(schemes))
    if row_invariant:
        print(record_row_invariance(chosen, in_schemes, out))
    else:
        print(*record_kernels(chosen, in_schemes, out, tune), sep="\n")


def attention(*, out: Path = Path("results/kernels")) -> None:
    """Attention and the small operations, on an NVIDIA GPU.

    Args:
        out: The folder for the table.
    """
    from specquant.study.record import record_attention

    print(record_attention(out))


def profile(
    *,
    model: str,
    schemes: tuple[str, ...] = ("all",),
    draft_sizes: tuple[int, ...] = (1, 60),
    context: int = 512,
    out: Path = Path("results/profiles"),
) -> None:
    """What the GPU does in a pass, kernel by kernel, scheme by scheme.

    Args:
        model: llama-3-8b or llama-3-70b, or a directory.
        schemes: With commas.
        draft_sizes: Tokens in a pass, with commas.
        context: Tokens in the cache.
        out: The folder for the table.
    """
    from specquant.experiments.kernels import bench_schemes
    from specquant.experiments.targets import storable_schemes
    from specquant.models.synthetic import synthetic_config
    from specquant.quant import get_scheme
    from specquant.study.record import record_profiles

    if schemes == ("all",):
        chosen = storable_schemes(bench_schemes(), synthetic_config(model), tell, rotated=False)
    else:
        chosen = [get_scheme(name).name for name in schemes]
    print(record_profiles(model, chosen, out, draft_sizes, context))


def plans(
    *,
    models_dir: Path = TINY,
    schemes: tuple[str, ...] = ("fp16", "w4a16-g128"),
    prompts_per_task: int = 2,
    max_new_tokens: int = 64,
    device: str | None = None,
    out: Path = Path("results/plans"),
) -> None:
    """A grid of plans on trained models, and what is predicted of each.

    Args:
        models_dir: The folder of a target and its companions.
        schemes: Of the target, with commas.
        prompts_per_task: How many prompts of each task.
        max_new_tokens: The most tokens behind a prompt.
        device: cuda or cpu (default: cuda where there is one).
        out: The folder for the table.
    """
    from specquant.models.device import choose_device
    from specquant.study.plan import record_plans

    path = record_plans(
        models_dir,
        _schemes_of_the_target(schemes, models_dir),
        out,
        keep_targets_in="results/targets",
        prompts_per_task=prompts_per_task,
        max_new_tokens=max_new_tokens,
        device=choose_device(device),
    )
    print(path)


def heads(
    *,
    models_dir: Path = TINY,
    schemes: tuple[str, ...] = ("fp16", "w4a16-g128"),
    prompts_per_task: int | None = None,
    max_new_tokens: int = 64,
    out: Path = Path("results/heads"),
) -> None:
    """What EAGLE heads of fewer bits and tokens lose in accepted length.

    Args:
        models_dir: The folder of a target and its companions.
        schemes: Of the target, with commas.
        prompts_per_task: How many prompts of each task (default: all).
        max_new_tokens: The most tokens behind a prompt.
        out: The folder for the table.
    """
    from specquant.study.drafting import record_heads

    path = record_heads(
        models_dir,
        _schemes_of_the_target(schemes, models_dir),
        out,
        keep_targets_in="results/targets",
        prompts_per_task=prompts_per_task,
        max_new_tokens=max_new_tokens,
    )
    print(path)


def trees(
    *,
    models_dir: Path = TINY,
    prompts_per_task: int | None = None,
    max_new_tokens: int = 64,
    out: Path = Path("results/trees"),
) -> None:
    """The shapes of EAGLE-2's trees on trained models, to be replayed.

    Args:
        models_dir: The folder of a target and its companions.
        prompts_per_task: How many prompts of each task (default: all).
        max_new_tokens: The most tokens behind a prompt.
        out: The folder for the table.
    """
    from specquant.study.record import record_trees

    print(record_trees(models_dir, out, prompts_per_task=prompts_per_task, max_new_tokens=max_new_tokens))


def _schemes_of_the_target(schemes: tuple[str, ...], models_dir: Path) -> list[str]:
    """The schemes that an option names, of a family's target; of those that it cannot have, a line each."""
    from specquant.experiments.targets import possible_schemes
    from specquant.files import resolve

    return possible_schemes(",".join(schemes), resolve(models_dir) / "target", tell)
