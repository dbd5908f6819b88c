"""The study: results with their provenance, figures in one style, and the batch that runs the notebooks."""

from specquant.files import project_root, resolve
from specquant.study.findings import check_findings
from specquant.tables.provenance import device_name
from specquant.tables.results import read_provenance, read_results, write_results
from specquant.tables.style import caption, device_label, new_figure, save_figure

__all__ = [
    "caption",
    "check_findings",
    "device_label",
    "device_name",
    "new_figure",
    "project_root",
    "read_provenance",
    "read_results",
    "resolve",
    "save_figure",
    "write_results",
]
