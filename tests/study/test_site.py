"""The site is built without a network; its links go somewhere, and it loads nothing from other servers."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from mkdocs.structure.files import File, Files

from specquant.files import project_root
from specquant.study import site
from specquant.study.claims import read_claims, shown


def build(folder: Path) -> Path:
    """`make docs` into a folder, behind a proxy that answers nothing."""
    nowhere = "http://127.0.0.1:9"
    options = ["--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "http_proxy": nowhere, "https_proxy": nowhere, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", *options]
    done = subprocess.run(command, cwd=project_root(), env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("docs") / "site")


@pytest.fixture(scope="module")
def pages(built):
    return {path: BeautifulSoup(path.read_text(), "html.parser") for path in sorted(built.rglob("*.html"))}


def links(soup):
    for name in ("href", "src"):
        yield from (tag[name] for tag in soup.find_all(attrs={name: True}))


def test_every_link_goes_somewhere(built, pages):
    anchors = {path: {tag["id"] for tag in soup.find_all(id=True)} for path, soup in pages.items()}
    followed, missing = 0, []
    for path, soup in pages.items():
        for link in links(soup):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors.get(target, ())):
                missing.append(f"{path.relative_to(built)}: {link}")
            followed += 1
    assert missing == []
    assert followed > 1000


def test_nothing_is_loaded_from_elsewhere(built, pages):
    for path, soup in pages.items():
        for tag in soup.select("script[src], link[href], img[src], iframe[src]"):
            assert not re.match(r"(https?:)?//", tag.get("src") or tag.get("href") or ""), f"{path.name}: {tag}"
        assert not [tag for tag in soup.find_all("script") if re.search(r"(unpkg|cdnjs|jsdelivr)", tag.text)], path.name
    for path in built.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text()), path.name


def test_the_start_page_has_the_claims_and_a_figure(built, pages):
    soup = pages[built / "index.html"]
    verdicts = [row.find_all("td")[-1].text for row in soup.select("article table tbody tr")]
    assert verdicts == list(shown(read_claims(), "README").verdict)
    assert (built / soup.select_one("article img")["src"]).is_file()


def test_notebooks_are_there_as_they_were_executed(built, pages):
    for name in site.notebooks():
        soup = pages[built / name.replace(".ipynb", ".html")]
        assert soup.select(".jp-OutputArea-output"), name
        assert "$$" not in " ".join(text.text for text in soup.select(".jp-MarkdownCell")), name
    assert any(soup.find("math") for soup in pages.values())
    tour = pages[built / site.notebooks()[0].replace(".ipynb", ".html")]
    assert tour.select_one("details.folded > summary").text == "parameters"


def test_guide_and_api_are_whole(built, pages):
    for page in (*site.guide(), *site.MORE, *site.data_pages()):
        assert any((built / page).with_name(name) in pages for name in (f"{Path(page).stem}.html", "index.html")), page
    for package in site.packages():
        assert pages[built / f"api/{package}.html"].find(id=f"specquant.{package}"), package
    assert pages[built / "api/decoding.html"].find(id="specquant.decoding.speculator")


def mapped(link, tmp_path, source="docs/a.md"):
    names = ("README.md", "docs/a.md", "data/tiny/README.md", "notebooks/00_tour.ipynb")
    files = Files([File(name, str(tmp_path), str(tmp_path), use_directory_urls=False) for name in names])
    soup = BeautifulSoup(f'<a href="{link}">x</a>', "html.parser")
    site._map_links(soup, files.get_file_from_path(source), files)
    return soup.a["href"]


@pytest.mark.parametrize(
    ("link", "goes_to"),
    [
        ("https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
        ("#here", "#here"),
        ("../README.md#two", "../index.html#two"),
        ("../data/tiny", "../data/tiny/index.html"),
        ("../LICENSE", "../LICENSE"),
        ("../src/specquant/decoding/tree.py", "../api/decoding.html#specquant.decoding.tree"),
        ("../src/specquant/kernels", "../api/kernels.html#specquant.kernels"),
    ],
)
def test_links_are_those_of_the_clone(tmp_path, link, goes_to):
    assert mapped(link, tmp_path) == goes_to


def test_a_link_to_nothing_is_a_warning(tmp_path, caplog):
    mapped("../nowhere.md", tmp_path)
    assert "docs/a.md links ../nowhere.md, which is not there" in caplog.text
