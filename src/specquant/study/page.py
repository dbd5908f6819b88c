"""A notebook as an HTML page: as JupyterLab shows it, folded cells folded."""

from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbformat import NotebookNode

# JupyterLab folds a cell's source by `jupyter.source_hidden` in its metadata; nbconvert's templates do not know of it.
FOLDING = """
{%- extends 'lab/index.html.j2' -%}
{%- block input -%}
{%- if cell.metadata.get('jupyter', {}).get('source_hidden') -%}
<details style="opacity:0.7"><summary style="cursor:pointer; font-size:90%">
{{- 'parameters' if 'parameters' in cell.metadata.get('tags', []) else 'code' -}}
</summary>{{ super() }}</details>
{%- else -%}
{{ super() }}
{%- endif -%}
{%- endblock input -%}
"""


def page(notebook: NotebookNode, name: str, theme: str = "light") -> str:
    """The HTML of a notebook, in one file; theme: "light" or "dark"."""
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"folding.html.j2": FOLDING})],
        template_file="folding.html.j2",
        embed_images=True,
        theme=theme,
    )
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})
    return html
