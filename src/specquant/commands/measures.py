"""The commands of `measure/`: a file that measures something is a command, without a line here.

Its options are the fields of its `Parameters`, and its docstring is the help. Both are read from its source, for the
file itself imports torch, pandas and transformers: it is imported when its command runs.
"""

import ast
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import specquant
from specquant import measure
from specquant.commands.options import UNSET, Executor, flat, tell

OF_EXECUTORS = """
    executor: Where units of work run: here, in fresh processes, or as jobs of Slurm.
    jobs: How many processes run at a time here, if nothing is timed.
    slurm: A file of what jobs ask Slurm for (default: notebooks/slurm.yaml)."""


def measures() -> Iterable[Callable[..., None]]:
    """The command of each file of `measure/` that measures something."""
    return _measures_in(measure.__path__[0])


@cache  # a process that calls many commands reads the sources once
def _measures_in(folder: str) -> tuple[Callable[..., None], ...]:
    sources = {
        module.name: ast.parse((Path(folder) / f"{module.name}.py").read_text(encoding="utf-8"))
        for module in iter_modules([folder])
    }
    return tuple(
        _command(name, source)
        for name, source in sources.items()
        if name in OTHERS or any(_assigns(node, "MEASURE") for node in source.body)
    )


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]


def _command(name: str, source: ast.Module) -> Callable[..., None]:
    kind = flat(_parameters(source))

    def measured(parameters: Any, out: Path) -> None:
        module = import_module(f"{measure.__name__}.{name}")
        given = {each.name: getattr(parameters, each.name) for each in fields(kind)}
        named = module.Parameters(**{name: value for name, value in given.items() if value is not UNSET})
        OTHERS.get(name, _record)(module, named, out)

    def command(*, parameters: Any, out: Path, executor: Executor, jobs: int, slurm: Path | None) -> None:
        from specquant.measure.executors import chosen

        with chosen(executor, jobs, slurm):
            measured(parameters, out)

    command.__name__ = NAMES.get(name, name)
    command.__doc__ = f"{ast.get_docstring(source)}\n\nArgs:\n    out: The folder for what is measured.{OF_EXECUTORS}"
    command.__annotations__["parameters"] = kind
    command.__kwdefaults__ = {"out": Path("results") / name, "executor": "here", "jobs": 1, "slurm": None}
    if all(each.default is not MISSING or each.default_factory is not MISSING for each in fields(kind)):
        command.__kwdefaults__["parameters"] = kind()
    return command


def _parameters(source: ast.Module, name: str = "Parameters") -> Any:
    """A dataclass with the fields and the docstring of the file's `Parameters`, and of its bases, and nothing else.

    What its types need is imported. A default that needs more than that is UNSET: only the file knows it.
    """
    (found,) = (node for node in source.body if isinstance(node, ast.ClassDef) and node.name == name)
    declared = [node for node in found.body if isinstance(node, ast.AnnAssign) and "ClassVar" not in _names(node)]
    types = {name for node in declared for name in _names(node.annotation)}
    known: dict[str, Any] = {"__name__": __name__, "dataclass": dataclass, "field": field, "UNSET": UNSET}
    for base in (each.id for each in found.bases if isinstance(each, ast.Name)):
        known[base] = _parameters(_source_of(base, source), base)
    for node in source.body:
        if isinstance(node, ast.ImportFrom):
            needed = [each.name for each in node.names if each.name in types]
            known |= {name: getattr(import_module(str(node.module)), name) for name in needed}
    for node in declared:
        if node.value and not _names(node.value) <= set(known):
            node.value = ast.Name("UNSET", ast.Load())
    found.body = [found.body[0], *declared]
    exec(compile(ast.fix_missing_locations(ast.Module([found], [])), __name__, "exec"), known)
    return known[name]


def _source_of(name: str, source: ast.Module) -> ast.Module:
    """Where a class is defined that a file names: that file itself, or the one that it imports it from."""
    for node in source.body:
        if isinstance(node, ast.ImportFrom) and node.module and name in [each.name for each in node.names]:
            path = Path(specquant.__file__).parent.joinpath(*node.module.split(".")[1:]).with_suffix(".py")
            return ast.parse(path.read_text(encoding="utf-8"))
    return source


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _record(module: ModuleType, parameters: Any, out: Path) -> None:
    from specquant.files import resolve
    from specquant.measure.measure import record

    record(module.MEASURE, parameters, out)
    for table in module.MEASURE.tables:
        print(resolve(out) / f"{table.name}.csv")


def _kernels(module: ModuleType, parameters: Any, out: Path) -> None:
    from specquant.quant import scheme_names

    schemes = scheme_names(",".join(parameters.schemes))
    print(*module.record_kernels(replace(parameters, schemes=tuple(schemes)), out), sep="\n")


def _profiles(module: ModuleType, parameters: Any, out: Path) -> None:
    """In the schemes that the shapes can have, where they are not named."""
    from specquant.measure.kernels import bench_schemes
    from specquant.models.synthetic import synthetic_config
    from specquant.models.targets import storable_schemes
    from specquant.quant import get_scheme

    if parameters.schemes == ("all",):
        schemes = storable_schemes(bench_schemes(), synthetic_config(parameters.model), tell, rotated=False)
    else:
        schemes = [get_scheme(name).name for name in parameters.schemes]
    _record(module, replace(parameters, schemes=tuple(schemes)), out)


def _of_the_target(module: ModuleType, parameters: Any, out: Path) -> None:
    """In the schemes that a family's target can have; of those that it cannot have, a line each."""
    from specquant.files import resolve
    from specquant.models.companions import target_in
    from specquant.models.targets import possible_schemes

    schemes = possible_schemes(",".join(parameters.schemes), target_in(resolve(parameters.models_dir)), tell)
    _record(module, replace(parameters, schemes=tuple(schemes)), out)


def _verify_cost(module: ModuleType, parameters: Any, out: Path) -> None:
    """In the schemes that the model can have, where they are not named."""
    from specquant.measure.kernels import bench_schemes
    from specquant.models.names import SHAPES, source_of
    from specquant.models.synthetic import synthetic_config
    from specquant.models.targets import possible_schemes, storable_schemes
    from specquant.quant import scheme_names

    names, model = ",".join(parameters.schemes), parameters.model
    more = bench_schemes() if names == "all" else ()
    config = synthetic_config(source_of(model))
    if parameters.weights == "synthetic" or model in SHAPES:
        schemes = list(dict.fromkeys([*scheme_names(names), *more]))
        if more:
            schemes = storable_schemes(schemes, config, tell, rotated=False)
    else:
        schemes = possible_schemes(names, model, tell, more)
    _record(module, replace(parameters, schemes=tuple(schemes)), out)


def _tasks(module: ModuleType, parameters: Any, out: Path) -> None:
    from specquant.tables.results import read_results

    path = module.record_benchmark(parameters, out)
    print(module.paper_form(read_results(path)).to_string(index=False))
    print(path)


def _planted(module: ModuleType, parameters: Any, out: Path) -> None:
    from specquant.files import resolve
    from specquant.measure.measure import record
    from specquant.tables.results import read_results

    record(module.MEASURE, parameters, out)
    path = resolve(out) / "planted.csv"
    print(module.losslessness(read_results(path)).to_string(index=False))
    print(path)


def _quality(module: ModuleType, parameters: Any, out: Path) -> None:
    """In the schemes that the target can have; of those that it cannot have, a line each."""
    from specquant.models.targets import possible_schemes

    schemes = possible_schemes(",".join(parameters.schemes) or "all", parameters.model, tell)
    _record(module, replace(parameters, schemes=tuple(schemes)), out)


NAMES = {"profiles": "profile"}  # of commands that are called otherwise than their file
# Those that do something else besides.
OTHERS = {"tasks": _tasks, "verify_cost": _verify_cost, "kernels": _kernels, "profiles": _profiles, "planted": _planted}
OTHERS["quality"] = _quality
OTHERS |= dict.fromkeys(("throughput", "plans", "heads"), _of_the_target)
