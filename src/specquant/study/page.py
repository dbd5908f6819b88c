"""A notebook as an HTML page: as JupyterLab shows it, folded cells folded, and nothing loaded from other servers."""

import re
from collections.abc import Iterator

from bs4 import BeautifulSoup, NavigableString
from jinja2 import DictLoader
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbformat import NotebookNode

# JupyterLab folds a cell's source by `jupyter.source_hidden` in its metadata; nbconvert's templates do not know of it.
FOLDING = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_css -%}
{{ super() }}
<style media="screen and (prefers-color-scheme: dark)">
:root { color-scheme: dark; }
{% include 'lab/static/theme-dark.css' %}
</style>
<style>
/* The colours are of what the themes leave too faint to read (a contrast of 4.5, WCAG 2's AA). */
:root { --jp-cell-prompt-not-active-opacity: 1;
  --jp-mirror-editor-operator-color: light-dark(#8a1bd1, #c58aff);
  --jp-mirror-editor-number-color: light-dark(#007000, #66bb6a); }
/* Lines of code break where they are cut off otherwise, and tables scroll. */
.jp-InputArea-editor .highlight pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.jp-OutputArea-output pre { word-break: normal; overflow-wrap: anywhere; }
.jp-RenderedHTMLCommon { overflow-x: auto; }
/* A folded cell takes a line, so that the first figure is on the first screen. */
.jp-Cell:has(> .jp-Cell-inputWrapper details.folded:not([open])) { padding-top: 0; padding-bottom: 0; }
.jp-Cell:has(> .jp-Cell-inputWrapper details.folded:not([open])) .jp-InputPrompt { padding: 0; line-height: 1.3; }
details.folded { opacity: 0.7; font-family: var(--jp-content-font-family); line-height: 1.3; }
details.folded summary { cursor: pointer; font-size: 90%; }
</style>
{%- endblock html_head_css -%}
{%- block input -%}
{%- if cell.metadata.get('jupyter', {}).get('source_hidden') -%}
<details class="folded"><summary>
{{- 'parameters' if 'parameters' in cell.metadata.get('tags', []) else 'code' -}}
</summary>{{ super() }}</details>
{%- else -%}
{{ super() }}
{%- endif -%}
{%- endblock input -%}
"""

FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$]+?)(?<!\s)\$(?![\w$])", re.DOTALL)


def page(notebook: NotebookNode, name: str) -> str:
    """The HTML of a notebook, in one file, light or dark as the browser prefers."""
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"folding.html.j2": FOLDING})],
        template_file="folding.html.j2",
        embed_images=True,
    )
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})
    soup = BeautifulSoup(html, "html.parser")
    drop_foreign_scripts(soup)
    draw_formulae(soup)
    _keep_links_inside(soup)
    return str(soup)


def _keep_links_inside(soup: BeautifulSoup) -> None:
    """Notebooks link other notebooks' pages; what is elsewhere in the clone is named, for the page may be moved."""
    for link in soup.select("a[href]"):
        address = link["href"]
        if "://" in address or address.startswith(("#", "mailto:", "data:")):
            continue
        path, _, fragment = address.partition("#")
        if path.startswith("../"):
            link.name = "span"
            link.attrs = {"title": f"{path.removeprefix('../')} in the clone"}
        elif path.endswith(".ipynb"):
            link["href"] = path.removesuffix(".ipynb") + ".html" + (f"#{fragment}" if fragment else "")


def drop_foreign_scripts(soup: BeautifulSoup) -> None:
    """Remove nbconvert's scripts that load MathJax, Mermaid and widgets from other servers."""
    for script in soup.find_all("script"):
        if "://" in script.get("src", "") or re.search(r"(?i)(import|from|src)[^\n]*https?://", script.text):
            script.decompose()


def draw_formulae(soup: BeautifulSoup) -> None:
    """Replace LaTeX between dollars in a page's text, not in its code, by MathML, which browsers draw by themselves."""
    for text in list(_prose(soup)):
        pieces: list[NavigableString | BeautifulSoup | str] = []
        last = 0
        for found in FORMULA.finditer(text):
            pieces.append(text[last : found.start()])
            display = "inline" if found[1] is None else "block"
            pieces.append(BeautifulSoup(convert(found[1] or found[2], display=display), "html.parser"))
            last = found.end()
        if pieces:
            text.replace_with(*pieces, text[last:])


def _prose(soup: BeautifulSoup) -> Iterator[NavigableString]:
    for text in soup.find_all(string=True):
        if type(text) is NavigableString and "$" in text and not text.find_parent(["code", "pre", "script", "style"]):
            yield text
