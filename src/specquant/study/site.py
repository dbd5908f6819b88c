"""The site's pages, for MkDocs (mkdocs.yml): this clone's own files where they are, so that their links hold on both.

A link to a page goes to it, one to our code to the API, one to another file of the clone to a copy of it. A link to
nothing is a warning, which `mkdocs build --strict` (`make docs`) refuses. Nothing is loaded from other servers:
formulae are MathML, which browsers draw by themselves.
"""

import json
import logging
import posixpath
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from specquant.study.page import draw_formulae, drop_foreign_scripts

ROOT = Path(__file__).resolve().parents[3]
START = "README.md"
# Of docs/, in this order.
FIRST = ("findings", "words", "models", "checkpoints", "planner", "measuring", "commands", "sandbox")
MORE = ("CONTRIBUTING.md", "CHANGELOG.md", "figures/README.md")
ASSETS = ("docs/site.css", "docs/iframe-worker.js")
PACKAGE = "src/specquant"

log = logging.getLogger("mkdocs.hooks.site")
copied: set[str] = set()  # files of the clone that pages link and that are no pages


def guide() -> list[str]:
    """The pages of docs/, those of FIRST before others."""
    there = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
    return [f"docs/{name}.md" for name in sorted(there, key=lambda name: (name not in FIRST, _place(name), name))]


def _place(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def notebooks() -> list[str]:
    return [f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


def packages() -> list[str]:
    """Our packages, each of which has a page of the API."""
    return sorted(path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py"))


def data_pages() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "data").glob("*/README.md"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put what there is into the menu."""
    copied.clear()
    config.nav = [
        {"Start": START},
        {"Guide": guide()},
        {"Notebooks": notebooks()},
        {"API": [{name: f"api/{name}.md"} for name in packages()]},
        {"More": [*MORE, {"Data": data_pages()}]},
    ]
    return config


@event_priority(100)  # before mkdocs-jupyter, which looks for notebooks among the files
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every page under its path in the clone, and the theme's own files."""
    pages = [START, *guide(), *notebooks(), *MORE, *data_pages(), *ASSETS]
    figures = [path.relative_to(ROOT).as_posix() for path in (ROOT / "figures").rglob("*.png")]
    ours = [File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in (*pages, *figures)]
    api = [File.generated(config, f"api/{name}.md", content=f"::: specquant.{name}\n") for name in packages()]
    theirs = [file for file in files if not _is_of_docs(file, config)]
    return Files([*theirs, *ours, *api])


def _is_of_docs(file: File, config: MkDocsConfig) -> bool:
    return file.abs_src_path is not None and Path(file.abs_src_path).is_relative_to(config.docs_dir)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Map links, and of a notebook fold what is folded in JupyterLab and draw its formulae."""
    soup = BeautifulSoup(html, "html.parser")
    _map_links(soup, page.file, files)
    if page.file.src_uri.endswith(".ipynb"):
        drop_foreign_scripts(soup)
        _fold(soup, json.loads((ROOT / page.file.src_uri).read_text(encoding="utf-8"))["cells"])
        draw_formulae(soup)
    return str(soup)


def on_post_build(config: MkDocsConfig) -> None:
    """Copy the linked files that are no pages."""
    for name in sorted(copied):
        target = Path(config.site_dir) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)


def _map_links(soup: BeautifulSoup, file: File, files: Files) -> None:
    folder = posixpath.dirname(file.dest_uri)
    by_source = {each.src_uri: each.dest_uri for each in files}
    written = set(by_source.values())
    for tag, name in ((tag, kind) for kind in ("href", "src") for tag in soup.find_all(attrs={kind: True})):
        parts = urlsplit(tag[name])
        if parts.scheme or parts.netloc or not parts.path:
            continue
        path = posixpath.normpath(posixpath.join(folder, unquote(parts.path)))
        if path in written:
            continue
        target = _target(path, by_source)
        if target is None:
            log.warning("%s links %s, which is not there", file.src_uri, tag[name])
            continue
        where = posixpath.relpath(target, folder or ".")
        tag[name] = f"{where}#{parts.fragment}" if parts.fragment and "#" not in where else where


def _target(path: str, by_source: dict[str, str]) -> str | None:
    """Where in the site a file or folder of the clone is; None where it is not there."""
    if path in by_source:
        return by_source[path]
    if f"{path}/{START}" in by_source:
        return by_source[f"{path}/{START}"]
    if path.startswith(f"{PACKAGE}/") and (ROOT / path).exists():
        parts = Path(path).relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in packages():
            return f"api/{parts[0]}.html#{'.'.join(('specquant', *parts))}"
    if (ROOT / path).is_file():
        copied.add(path)
        return path
    return None


def _fold(soup: BeautifulSoup, cells: list[dict]) -> None:
    """Fold the sources that JupyterLab folds; mkdocs-jupyter shows them."""
    shown = [tag for tag in soup.select(".jp-Cell") if tag.find_parent(class_="jp-Cell") is None]
    for cell, tag in zip(cells, shown, strict=True):
        if not cell["metadata"].get("jupyter", {}).get("source_hidden"):
            continue
        source = tag.select_one(".jp-Cell-inputWrapper")
        if source is None:
            continue
        details, summary = soup.new_tag("details", attrs={"class": "folded"}), soup.new_tag("summary")
        summary.string = "parameters" if "parameters" in cell["metadata"].get("tags", []) else "code"
        source.wrap(details)
        details.insert(0, summary)
