"""The batch: runs the notebooks by papermill, skips those that did not change, and goes on after a failure.

Notebooks run one after another, for each may read what those before it wrote; here, or each as a job of Slurm, which
submits what it measures as jobs of its own and waits for their tables.

It fills results/PROFILE/: the tables and figures that the notebooks write; notebooks/NAME.ipynb and NAME.html, as
executed; notebooks/NAME.json, the record that decides whether a notebook runs again; and index.html, which links them.
"""

import ast
import difflib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import nbformat
import papermill
import papermill.engines
from jupyter_core.paths import jupyter_runtime_dir
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from specquant.errors import SpecquantError
from specquant.files import project_root, resolve, write_file
from specquant.measure import executors
from specquant.measure.executors import Slurm, Task
from specquant.measure.states import STATES, read_states
from specquant.models.companions import COMPANIONS
from specquant.study.digests import digest_of_files, digest_of_output, digest_of_texts, digests_of_named, source_of
from specquant.study.findings import FINDINGS, read_findings
from specquant.study.page import page
from specquant.study.report import Live, write_report
from specquant.study.working import JOBS, note_cell, read_cell, remove_abandoned, working_folder
from specquant.tables.plain_yaml import plain_yaml
from specquant.tables.provenance import COMMAND, command_line, provenance, without_local_paths

# Parameters that name the models, and where they run.
MODELS = ("target", *COMPANIONS, "dtype", "device")
STUDY_NOTEBOOK = re.compile(r"\d\d_\w+")


def run_study(
    profile: str = "tiny",
    only: Iterable[str] = (),
    force: bool = False,
    results: str | os.PathLike = "results",
) -> list[str]:
    """Run the notebooks in order with the parameters in notebooks/profiles/`profile`.yaml; returns the names of those
    that failed.

    `only` names notebooks, with or without their number; all of them where it is empty, but for files that are neither
    the study's nor notebooks. A notebook whose code, source, parameters, data and models are those of its last good
    run, and whose output is as it was written, is skipped unless `force`. A profile that names a target names the
    models that draft for it, too: those that it does not name are left out. Output goes to `results`/`profile`. Raises
    SpecquantError, before anything runs, for an unknown profile, notebook or parameter, a value of a wrong type, models
    that are missing or do not fit together, and a folder that cannot be written; and for one that can no longer be
    written. KeyboardInterrupt passes through; what had finished then stays, and the next run skips it.
    """
    root = project_root()
    notebooks = {path.stem: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    chosen = [_notebook_named(name, notebooks) for name in only]
    declared, unreadable = _declared(notebooks, chosen)
    chosen = chosen or list(declared)
    values = read_profile(profile, dict(item for types in declared.values() for item in types.items()), unreadable)
    if "target" in values:
        from specquant.measure.family import Family  # loads torch and transformers, which jobs of notebooks do not need

        values = dict.fromkeys(COMPANIONS, "") | values
        Family(**{name: values[name] for name in MODELS if name in values})
    _require_runtime_folder()
    folder = resolve(results) / profile
    executed = folder / "notebooks"
    values |= {"results_dir": _as_parameter(folder, root), "figures_dir": _as_parameter(folder / "figures", root)}
    shared_digest = digest_of_files(root)
    write_report(folder, profile, notebooks)
    try:
        executed.mkdir(exist_ok=True)
    except OSError as error:
        raise SpecquantError(f"cannot write to {executed} ({error.strerror}): choose another folder") from None
    remove_abandoned(executed)

    notebooks = {name: notebooks[name] for name in declared}
    failed = []
    with _reported(folder, profile, notebooks), tqdm(chosen, unit="notebook", file=sys.stderr) as bar:
        for name in bar:
            bar.set_description(name)
            parameters = {key: value for key, value in values.items() if key in declared[name]}
            told = json.dumps([parameters, digests_of_named(parameters)], default=str)
            inputs = digest_of_texts(shared_digest, source_of(notebooks[name]), told)
            if not force and _is_current(folder, name, inputs):
                tqdm.write(f"{name}: unchanged, skipped", file=sys.stderr)
                continue
            waiting = tuple(chosen[chosen.index(name) + 1 :])
            show = partial(_show, folder, profile, list(notebooks), name, waiting)
            show()
            record = _executed(notebooks[name], parameters, folder, inputs, show)
            if record["error"] is None:
                tqdm.write(f"{name}: done in {record['seconds']:.0f} s", file=sys.stderr)
            else:
                failed.append(name)
                kept = executed / f"{name}.ipynb"
                tqdm.write(f"{name}: FAILED, kept with its traceback in {kept}: {record['error']}", file=sys.stderr)
    return failed


@contextmanager
def _reported(folder: Path, profile: str, notebooks: Iterable[str]) -> Iterator[None]:
    """Write the report at the end, whatever happened: what ended the batch is what the user then sees, not that the
    report cannot be written either."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError, SpecquantError):
            write_report(folder, profile, notebooks)
        if isinstance(error, OSError):
            reason = f"cannot write to {folder / 'notebooks'} ({error.strerror})"
            raise SpecquantError(f"{reason}: make it writable; the same command goes on from what is there") from None
        raise
    tqdm.write(f"Report: {write_report(folder, profile, notebooks)}", file=sys.stderr)


def _show(
    folder: Path,
    profile: str,
    notebooks: list[str],
    name: str,
    waiting: tuple[str, ...],
    cell: int = 0,
    cells: int = 0,
    job: str | None = None,
    log: str | None = None,
    jobs: Sequence[dict[str, Any]] = (),
) -> None:
    """Have the report say where a notebook is. What it cannot be written for now, the end of the batch says."""
    with suppress(SpecquantError):
        write_report(folder, profile, notebooks, Live(name, cell, cells, waiting, job, log, jobs))


def _where(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """When a notebook ran, on what and on which commit, for the report."""
    device = str(parameters.get("device", "cpu"))
    try:
        found = provenance({}, device)
    except (RuntimeError, AssertionError):  # no such device here: the notebook has failed of it already
        found = provenance({})
    return {name: found[name] for name in ("date", "device", "commit", "uncommitted_changes")}


class _Telling(papermill.engines.NBClientEngine):
    """Papermill's own engine, which also tells before each cell where it is."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, tell: Callable[[int, int], None], **options):
        start = nb_man.cell_start

        def cell_start(cell, cell_index=None, **rest):
            tell((cell_index or 0) + 1, len(nb_man.nb.cells))
            return start(cell, cell_index, **rest)

        nb_man.cell_start = cell_start
        return super().execute_managed_notebook(nb_man, kernel_name, **options)


papermill.engines.papermill_engines.register("specquant", _Telling)


def _declared(notebooks: Mapping[str, Path], chosen: list[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The parameters that each notebook declares, and the names of files that cannot be read as notebooks.

    Raises SpecquantError where such a file was chosen, or, where none was, is one of the study's. Others, which an
    aborted save may have left, are skipped with a word.
    """
    declared, unreadable = {}, []
    for name, path in notebooks.items():
        try:
            declared[name] = parameter_types(path)
        except SpecquantError as error:
            if name in chosen or (not chosen and STUDY_NOTEBOOK.fullmatch(name)):
                raise
            unreadable.append(path.name)
            if not chosen:
                tqdm.write(f"{name}: skipped: {error}", file=sys.stderr)
    return declared, unreadable


def _require_runtime_folder() -> None:
    """Raises SpecquantError where Jupyter cannot note its kernels: every notebook would fail of that."""
    folder = Path(jupyter_runtime_dir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise SpecquantError(
            f"Jupyter cannot write to {folder}: set HOME or JUPYTER_RUNTIME_DIR to a folder that it can"
        )


def parameter_types(notebook: Path) -> dict[str, str]:
    """The parameters that a notebook declares, with the type of each: its annotation, or else its default's type.

    Raises SpecquantError for a file that is no notebook.
    """
    try:
        declared = papermill.inspect_notebook(notebook)
    except Exception as error:  # each kind of damage has its own exception type
        reason = " ".join(str(error).split())[:200]
        raise SpecquantError(
            f"{notebook} is no notebook ({reason}): remove it, or take it from the repository"
        ) from None
    types = {}
    for name, parameter in declared.items():
        types[name] = parameter["inferred_type_name"]
        if types[name] == "None":  # no annotation
            try:
                types[name] = type(ast.literal_eval(parameter["default"])).__name__
            except (ValueError, SyntaxError):
                types[name] = "Any"
    return types


def read_profile(profile: str, types: Mapping[str, str], unreadable: Iterable[str] = ()) -> dict[str, Any]:
    """The parameter values in notebooks/profiles/`profile`.yaml.

    types: all parameters that there are, with their types; unreadable: files that might declare more. Plain numbers are
    decimal: 010, 0x10 and 1:30 are text here, as dates are. Raises SpecquantError for a profile that is not there or is
    no flat mapping, for a name that is not in `types` or is there twice, and for a value that is not of its type.
    """
    folder = project_root() / "notebooks" / "profiles"
    profiles = sorted(path.stem for path in folder.glob("*.yaml"))
    if profile not in profiles:
        raise SpecquantError(f"unknown profile {profile!r}: notebooks/profiles/ has {', '.join(profiles) or 'none'}")
    file = f"notebooks/profiles/{profile}.yaml"
    try:
        text = (folder / f"{profile}.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SpecquantError(f"{file} is not valid YAML: {error}") from None
    values = plain_yaml(text, file)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SpecquantError(f"{file} must hold lines of the form `parameter: value`")
    for name, value in values.items():
        if name not in types:
            hint = "".join(f"; {other} could not be read" for other in unreadable) or _did_you_mean(name, types)
            raise SpecquantError(f"{file}: no notebook has a parameter {name!r}{hint}")
        if not (_is_a(value, types[name]) and _is_plain(value)):
            hint = ", in quotes if it is text" if types[name] == "str" and not isinstance(value, str) else ""
            raise SpecquantError(f"{file}: {name} is {value!r}; give a value of the type {types[name]}{hint}")
    return values


def _is_a(value: Any, type_name: str) -> bool:
    """Whether a value from YAML is of a type such as "float" or "list[int]"; of types unknown here, everything is."""
    outer, _, inner = type_name.removesuffix("]").partition("[")
    match outer:
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "str":
            return isinstance(value, str)
        case "list" | "tuple":
            return isinstance(value, list) and all(_is_a(item, inner) for item in value)
        case "dict":
            return isinstance(value, dict)
    return True


def _is_plain(value: Any) -> bool:
    """Whether a notebook can be given a value: numbers are finite, text is text, and so inside of lists and objects."""
    match value:
        case dict():
            return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
        case list():
            return all(map(_is_plain, value))
        case str():
            return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
        case float():
            return isfinite(value)
    return value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63)


def _executed(
    notebook: Path, parameters: dict[str, Any], folder: Path, inputs: str, show: Callable[..., None]
) -> dict[str, Any]:
    """Run one notebook, here or as a job, and write its record; returns that."""
    executor = executors.current()
    with working_folder(folder / "notebooks", notebook.stem) as working:
        if isinstance(executor, Slurm):
            record = _run_as_job(executor.of_notebooks(), notebook, parameters, folder, working, show)
        else:
            record = _run(notebook, parameters, folder, working, show)
    record |= {"inputs": inputs, "parameters": without_local_paths(parameters)}
    content = json.dumps(record, indent=2, default=str) + "\n"
    write_file(folder / f"notebooks/{notebook.stem}.json", content, by_several=True)
    return record


def _run(
    notebook: Path, parameters: dict[str, Any], folder: Path, working: Path, tell: Callable[[int, int], None]
) -> dict[str, Any]:
    """Execute one notebook and keep it, as .ipynb and .html, whether it failed or not; returns its record.

    It executes into a file in the folder `working`, which takes its place when it is whole. `tell` is called before
    each cell.
    """
    executed = folder / "notebooks"
    unfinished, found = working / notebook.name, working / "findings.json"
    try:
        (executed / f"{notebook.stem}.json").unlink(missing_ok=True)  # from here on there is no good run to rely on
    except OSError as refused:
        raise SpecquantError(f"cannot write to {executed} ({refused.strerror}): choose another folder") from None
    before = _outputs(folder)
    start = time.perf_counter()
    error, result = None, None
    try:
        told = {FINDINGS: str(found), STATES: str(working / JOBS), COMMAND: command_line() or ""}
        with _environment(TQDM_DISABLE="1", **told):
            papermill.execute_notebook(
                notebook,
                unfinished,
                parameters,
                kernel_name="python3",
                cwd=project_root(),
                extra_arguments=["--log-level=ERROR"],  # the kernel's own warnings would tear the progress bar
                engine_name="specquant",
                tell=tell,
                progress_bar={"desc": f"  cells of {notebook.stem}", "position": 1, "leave": False, "file": sys.stderr},
            )
    except PapermillExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except Exception as failure:  # the kernel died or did not start: this notebook failed, the others still run
        error = f"{type(failure).__name__}: {failure}"
    after = _outputs(folder)
    with suppress(OSError, ValueError, nbformat.ValidationError):  # a full disk may have cut it off
        result = nbformat.read(unfinished, as_version=4)
    if result is None:
        result = nbformat.read(notebook, as_version=4)
    for path in ("input_path", "output_path"):
        result.metadata.get("papermill", {}).pop(path, None)
    files = sorted(name for name, stamp in after.items() if before.get(name) != stamp)
    ours = [write_file(executed / notebook.name, nbformat.writes(result) + "\n", by_several=True)]
    ours.append(write_file(executed / f"{notebook.stem}.html", page(result, notebook.stem), by_several=True))
    written = [*files, *(path.relative_to(folder).as_posix() for path in ours)]
    return {
        "error": None if error is None else " ".join(error.split()),
        "seconds": round(time.perf_counter() - start, 1),
        **_where(parameters),
        "title": _title(result),
        "findings": read_findings(found),
        "jobs": read_states(working / JOBS, folder),
        "files": files,
        "written": {name: digest for name in written if (digest := digest_of_output(folder / name))},
    }


def _run_as_job(
    executor: Slurm,
    notebook: Path,
    parameters: dict[str, Any],
    folder: Path,
    working: Path,
    show: Callable[..., None],
) -> dict[str, Any]:
    """As `_run`, by a job; `show` is called again and again with its state, its log, which stays if it failed, where it
    is, and the states of the jobs that it waits for."""
    order = {"notebook": str(notebook), "parameters": parameters, "folder": str(folder), "working": str(working)}
    environment = {executors.EXECUTOR: os.environ[executors.EXECUTOR]}
    task = Task(notebook.stem, "specquant.study", json.dumps(order, default=str), environment)
    record: dict[str, Any] = {"error": "its job told nothing", "seconds": 0.0, "files": [], "written": {}}
    began, state = time.perf_counter(), dict[str, Any]()
    for _, told in executor.run([task], folder / "notebooks" / f"{notebook.stem}.jobs"):
        if "state" in told:
            state = {"job": told["state"], "log": _below(folder, told["log"])}
        if "state" in told or not told:
            show(*read_cell(working), jobs=read_states(working / JOBS, folder), **state)
        elif "record" in told:
            record = told["record"]
        elif told.get("ended") != 0:
            why = told.get("why") or f"ended with status {told.get('ended')}"
            record |= {"error": f"its job {why}", "log": _below(folder, told["log"])}
            record |= {"jobs": read_states(working / JOBS, folder)}
            record["seconds"] = record["seconds"] or round(time.perf_counter() - began, 1)
    return record


def _below(folder: Path, file: str) -> str:
    """A file's place in a folder, which may move."""
    return Path(file).relative_to(folder).as_posix()


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """What the job of a notebook does."""
    notebook, folder, working = (Path(order[name]) for name in ("notebook", "folder", "working"))
    tell({"record": _run(notebook, order["parameters"], folder, working, partial(note_cell, working))})


def _is_current(folder: Path, name: str, inputs: str) -> bool:
    """Whether the last run was good, had the same inputs, and all that it wrote is there, as it was written."""
    try:
        record = json.loads((folder / f"notebooks/{name}.json").read_text(encoding="utf-8"))
        written = record["written"]
        if record["error"] is not None or record["inputs"] != inputs or not {*record["files"]} <= {*written}:
            return False
        if not {f"notebooks/{name}.ipynb", f"notebooks/{name}.html"} <= {*written}:
            return False
        return all(digest_of_output(folder / file) == digest for file, digest in written.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables for the kernels that start inside of this: nobody sees their own progress bars while they run, which in
    an executed notebook would be rubbish, they tell what they find, and their tables say which command made them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _title(notebook: nbformat.NotebookNode) -> str:
    """A notebook's first heading; nothing where it has none."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"^# +(.+)$", cell.source, re.MULTILINE)):
            return heading[1].strip()
    return ""


def _outputs(folder: Path) -> dict[str, tuple[int, int]]:
    """Tables and figures below `folder`: relative path -> (modification time in ns, size)."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for name, path in files.items()
        if name.parts[0] not in ("notebooks", "index.html") and not any(part.startswith(".") for part in name.parts)
    }


def _notebook_named(name: str, notebooks: Mapping[str, Path]) -> str:
    wanted = name.removesuffix(".ipynb")
    for stem in notebooks:
        if wanted in (stem, stem.partition("_")[2]):
            return stem
    raise SpecquantError(f"there is no notebook {name!r}: choose from {', '.join(notebooks) or 'none'}")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known)) or 'none'}"


def _as_parameter(folder: Path, root: Path) -> str:
    """Relative to the project root where it is below it, so that an executed notebook tells nothing of this machine."""
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
