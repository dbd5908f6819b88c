"""What holds the project together: one list of packages told three times, and imports that go one way."""

import ast
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from specquant.study.batch import parameter_types

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src/specquant").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Each part may import itself and the parts before it. training stops short of decoding.
ORDER = ["errors", "progress", "files", "tables", "kernels", "quant", "models", "decoding", "benchmarks", "planning"]
ORDER += ["training", "measure", "study", "commands", "cli"]
NOT_EVEN = {"training": {"decoding", "planning"}}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def dependencies() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    return [Requirement(line) for lines in (project()["dependencies"], *extras) for line in lines]


def locked() -> dict[str, list[Requirement]]:
    """The lock's lines by package; a package has several where Python versions need different ones."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    packages: dict[str, list[Requirement]] = {}
    for line in lines:
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            packages.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return packages


def pinned_version(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is no exact version"
    return Version(specifier.version)


def environment(python: str, platform: str) -> dict[str, str]:
    names = {"linux": ("Linux", "x86_64"), "darwin": ("Darwin", "arm64")}[platform]
    return default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": platform,
        "platform_system": names[0],
        "platform_machine": names[1],
        "os_name": "posix",
    }


def applies(requirement: Requirement, where: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(where | {"extra": ""})


ENVIRONMENTS = [
    environment(python, platform) for python in ("3.11", "3.12", "3.13") for platform in ("linux", "darwin")
]


@pytest.mark.parametrize("where", ENVIRONMENTS, ids=lambda where: f"{where['python_version']}-{where['sys_platform']}")
def test_the_lock_holds_every_dependency_once_in_a_version_that_pyproject_accepts(where):
    for dependency in dependencies():
        pins = [pin for pin in locked().get(canonicalize_name(dependency.name), []) if applies(pin, where)]
        assert len(pins) == (1 if applies(dependency, where) else 0), dependency
        for pin in pins:
            assert dependency.specifier.contains(pinned_version(pin)), (dependency, pin)


def test_the_lock_holds_what_its_packages_need_and_nothing_of_cuda():
    """CUDA's packages are left to torch's CUDA build, so that the CPU build installs from the same lock."""
    here = default_environment()
    lock = locked()
    assert {name for name in lock if name.startswith(("nvidia-", "cuda-"))} == {"nvidia-ml-py"}  # a library of its own
    for name, pins in lock.items():
        if not any(applies(pin, here) for pin in pins):
            continue
        try:
            needs = [Requirement(line) for line in distribution(name).requires or []]
        except PackageNotFoundError:
            continue  # an environment made otherwise
        for need in needs:
            needed = canonicalize_name(need.name)
            if applies(need, here) and not needed.startswith(("nvidia-", "cuda-")):
                assert needed in lock, f"{name} needs {need}"


def test_torch_and_triton_are_pinned_together_and_triton_only_for_linux():
    (torch,), (triton,) = locked()["torch"], locked()["triton"]
    assert (str(torch.specifier), str(triton.specifier)) == ("==2.13.0", "==3.7.1")
    (floor,) = [dependency for dependency in dependencies() if dependency.name == "triton"]
    for requirement in (triton, floor):
        assert [applies(requirement, where) for where in ENVIRONMENTS] == [
            where["sys_platform"] == "linux" for where in ENVIRONMENTS
        ]


def test_conda_takes_python_from_conda_and_the_rest_from_the_lock():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock", "-e ."]
    (python,) = [entry for entry in conda if isinstance(entry, str) and entry.startswith("python")]
    assert {entry for entry in conda if isinstance(entry, str)} == {python, "pip"}
    offered, required = SpecifierSet(python.removeprefix("python")), SpecifierSet(project()["requires-python"])
    for minor in range(8, 20):
        assert not offered.contains(f"3.{minor}") or required.contains(f"3.{minor}")
    assert all(offered.contains(where["python_version"]) for where in ENVIRONMENTS)


def test_make_and_ci_set_up_from_the_lock():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^\.venv/\.ready: requirements\.lock$", makefile, re.MULTILINE)
    targets = ("study", "test", "test-notebooks", "test-bits", "test-full", "test-gpu", "test-browser", "test-slurm")
    targets += ("coverage", "figures", "lab", "lint", "types", "docs")
    for target in targets:
        assert re.search(rf"^{target}: \.venv/\.ready", makefile, re.MULTILINE), target
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == [
        "make lint",
        "make types",
        "make test",
        "make test-notebooks",
        "make test-bits",
        "make docs",
        "make test-browser",
    ]


def run_ci(folder, *, commands):
    """Run .ci/run where nothing is installed but these commands and what bash needs; its steps only say their names."""
    (folder / ".ci").mkdir()
    (folder / "bin").mkdir()
    shutil.copy(ROOT / ".ci/run", folder / ".ci/run")
    for name, script in {"make": 'echo "make $*"', **commands}.items():
        (folder / "bin" / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "bin/dirname").symlink_to(shutil.which("dirname"))
    command = [shutil.which("bash"), str(folder / ".ci/run")]
    return subprocess.run(command, env={"PATH": str(folder / "bin")}, capture_output=True, text=True)


NO_ROOT, ROOT_USER = {"id": "echo 1000"}, {"id": "echo 0"}


@pytest.mark.parametrize(
    "commands",
    [NO_ROOT, NO_ROOT | {"apt-get": "exit 100"}, ROOT_USER, ROOT_USER | {"apt-get": "exit 100"}],
    ids=["no root, no apt", "no root", "no apt", "no network"],
)
def test_ci_says_what_it_skips_where_nothing_can_be_installed_and_runs_every_step(tmp_path, commands):
    ran = run_ci(tmp_path, commands=commands)
    assert ran.returncode == 0
    assert ran.stdout.splitlines()[-2:] == ["make docs", "make test-browser"]
    assert ran.stderr.splitlines() == [
        "bubblewrap is missing and cannot be installed here: tests of the sandbox are skipped",
        "chromium is missing and cannot be installed here: tests in a browser are skipped",
    ]


def test_ci_installs_what_is_missing_and_says_nothing_of_it(tmp_path):
    install = 'case "$*" in *update) exit;; esac; echo "apt-get ${@: -1}"'
    ran = run_ci(tmp_path, commands=ROOT_USER | {"apt-get": f"{install} >&2", "bwrap": ""})
    assert (ran.returncode, ran.stderr) == (0, "apt-get chromium\n")


def test_bits_are_tested_as_on_a_processor_without_avx_512():
    """By the tests that say they compare bits, those of the kernels in the interpreter among them."""
    makefile = (ROOT / "Makefile").read_text()
    assert "test-bits: export OPENBLAS_CORETYPE = Haswell\n" in makefile
    assert re.search(r'-m "bits and ', makefile)
    marked = {path.name for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.bits" in path.read_text()}
    assert {"test_attention.py", "test_graphs.py", "test_interpreter.py", "test_products.py"} <= marked


def imported_parts(source: str, package: str) -> set[str]:
    """The parts of specquant that a module's source imports, anywhere in it. `package`: the dotted package it is in."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            modules = [f"{base}.{alias.name}" for alias in node.names] if base == "specquant" else [base]
        else:
            continue
        parts |= {module.split(".")[1] for module in modules if module.startswith("specquant.")}
    return parts & set(ORDER)


def forbidden_imports(part: str, imported: set[str]) -> set[str]:
    return imported - set(ORDER[: ORDER.index(part) + 1]) | imported & NOT_EVEN.get(part, set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT / "src/specquant").as_posix())
def test_imports_go_one_way(path):
    place = path.relative_to(ROOT / "src").with_suffix("").parts
    if place == ("specquant", "__init__"):
        assert not imported_parts(path.read_text(), "specquant")
        return
    assert place[1] in ORDER, f"{path.name}: give it a place in ORDER"
    imported = imported_parts(path.read_text(), ".".join(place[:-1]))
    assert not forbidden_imports(place[1], imported)


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("kernels", "from specquant.quant.schemes import Scheme"),
        ("quant", "def f():\n    import specquant.models.llama"),
        ("decoding", "from specquant import study"),
        ("models", "from ..decoding import tree"),
        ("training", "from specquant.decoding import Speculator"),
        ("planning", "from specquant.measure.plans import by_plan"),
        ("decoding", "from specquant.planning.planner import Planner"),
    ],
)
def test_a_wrong_import_is_seen(part, source):
    assert forbidden_imports(part, imported_parts(source, f"specquant.{part}"))


def test_notebooks_run_in_the_kernel_that_the_lock_brings():
    for path in NOTEBOOKS:
        assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3", path.name


def test_profiles_set_only_parameters_that_notebooks_have():
    known = set().union(*(papermill.inspect_notebook(path) for path in NOTEBOOKS))
    for path in (ROOT / "notebooks/profiles").glob("*.yaml"):
        if NOTEBOOKS:
            assert set(yaml.safe_load(path.read_text()) or {}) <= known, path.name


def test_papermill_sees_every_parameter_and_notebooks_agree_on_its_type():
    """It overlooks annotations that it cannot parse, such as `str | None`."""
    types: dict[str, str] = {}
    for path in NOTEBOOKS:
        (cell,) = [
            cell for cell in nbformat.read(path, as_version=4).cells if "parameters" in cell.metadata.get("tags", [])
        ]
        seen = parameter_types(path)
        assigned = {
            target.id
            for node in ast.parse(cell.source).body
            for target in getattr(node, "targets", [getattr(node, "target", None)])
            if isinstance(target, ast.Name)
        }
        assert set(seen) == assigned, path.name
        for name, type_name in seen.items():
            assert types.setdefault(name, type_name) == type_name, f"{path.name}: {name}"


def test_progress_bars_are_those_that_can_be_turned_off_where_outputs_are_kept():
    """tqdm.auto's by themselves cannot; the batch's own are for a terminal alone."""
    imports = re.compile(r"^(import|from) tqdm\b", re.MULTILINE)
    assert [path.name for path in SOURCES if imports.search(path.read_text())] == ["progress.py", "batch.py"]
