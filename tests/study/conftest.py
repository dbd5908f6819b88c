"""A small clone with notebooks of its own, for the batch to run, and what a module computes for pages."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import nbformat
import papermill.engines
import pytest

from specquant.study import batch


def numbers_of(module: ModuleType) -> dict[str, float]:
    """All numbers that a module's SOURCES compute, by name."""
    return {name: number for source, _ in module.SOURCES for name, number in source().items()}


class Clone:
    """A folder laid out like the project. Its notebooks note each run in `runs.txt`, so that tests can count them."""

    def __init__(self, root: Path):
        self.root = root
        self.results = root / "out"
        for folder in ("src", "data", "notebooks/profiles"):
            (root / folder).mkdir(parents=True)
        (root / "src/code.py").write_text("answer = 42\n")
        self.profile("tiny", "draft_size: 4\n")

    def profile(self, name: str, text: str) -> None:
        (self.root / f"notebooks/profiles/{name}.yaml").write_text(text)

    def notebook(self, name: str, code: str, parameters: str = "draft_size = 1\nresults_dir = 'nowhere'") -> None:
        note_run = f"open({str(self.root / 'runs.txt')!r}, 'a').write({name!r} + '\\n');"
        cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        cells += [nbformat.v4.new_code_cell(note_run), nbformat.v4.new_code_cell(code)]
        content = nbformat.v4.new_notebook(cells=cells)
        content.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(content, self.root / f"notebooks/{name}.ipynb")

    def runs(self) -> list[str]:
        noted = self.root / "runs.txt"
        return noted.read_text().split() if noted.exists() else []

    def executed(self, name: str, profile: str = "tiny") -> nbformat.NotebookNode:
        return nbformat.read(self.results / profile / f"notebooks/{name}.ipynb", as_version=4)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    made = Clone(tmp_path / "clone")
    monkeypatch.setattr(batch, "project_root", lambda: made.root)
    return made


class Here(papermill.engines.Engine):
    """Executes the cells in this process, without the second that a kernel takes to start."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, tell, **options):
        names = {}
        for index, cell in enumerate(nb_man.nb.cells):
            tell(index + 1, len(nb_man.nb.cells))
            nb_man.cell_start(cell, index)
            with redirect_stdout(StringIO()) as printed:
                exec(cell.source, names)
            if text := printed.getvalue():
                cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
            nb_man.cell_complete(cell, index)


@pytest.fixture
def run_in_kernel(clone: Clone) -> Callable[..., list[str]]:
    """Runs the clone's notebooks as the study does."""

    def run(**options) -> list[str]:
        return batch.run_study(results=clone.results, **options)

    return run


@pytest.fixture
def run(run_in_kernel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The same without kernels, for what does not depend on one."""
    monkeypatch.setitem(papermill.engines.papermill_engines._engines, "specquant", Here)
    return run_in_kernel
