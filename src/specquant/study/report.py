"""The HTML report of a batch: what ran, how it ended, and links to everything that it wrote."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from specquant.files import write_file

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>specquant: {profile}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #ddd; }}
.failed {{ color: #b3261e; font-weight: 600; }}
figure {{ display: inline-block; width: 24rem; max-width: 100%; margin: 1rem 1rem 1rem 0; vertical-align: top; }}
figure img {{ width: 100%; }}
figcaption {{ font-size: .85rem; color: #555; }}
</style>
</head>
<body>
<h1>specquant: the study with profile {profile}</h1>
<table>
<tr><th>notebook</th><th>last run</th><th>tables</th></tr>
{rows}
</table>
{figures}
</body>
</html>
"""


def write_report(
    folder: Path, profile: str, notebooks: Iterable[str], states: Mapping[str, Mapping[str, str]] | None = None
) -> Path:
    """Write `folder`/index.html from the notebooks' records; returns its path. Links are relative: the folder can move.

    states: of notebooks that jobs are to run: state, such as queued or running, and log. Raises SpecquantError where
    the folder cannot be written.
    """
    records = {name: _record(folder, name) for name in notebooks}
    rows = "\n".join(_row(folder, name, record, (states or {}).get(name)) for name, record in records.items())
    pictures = sorted(
        {file for record in records.values() for file in record.get("files", []) if file.endswith(".png")}
    )
    figures = "\n".join(_figure(folder, picture) for picture in pictures)
    return write_file(folder / "index.html", PAGE.format(profile=escape(profile), rows=rows, figures=figures))


def _record(folder: Path, name: str) -> dict[str, Any]:
    """A notebook's record, empty where it has not run or the record is damaged."""
    try:
        record = json.loads((folder / "notebooks" / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict) or not isinstance(record.get("seconds"), int | float):
        return {}
    error, files = record.get("error", 0), record.get("files")
    whole = isinstance(error, str | None) and isinstance(files, list) and all(isinstance(file, str) for file in files)
    return record if whole else {}


def _row(folder: Path, name: str, record: dict[str, Any], state: Mapping[str, str] | None) -> str:
    if state:
        return f"<tr><td>{escape(name)}</td><td>{escape(state['state'])}{_log(folder, state)}</td><td></td></tr>"
    if not record:
        return f"<tr><td>{escape(name)}</td><td>has not run</td><td></td></tr>"
    title = f'<a href="notebooks/{name}.html">{escape(name)}</a> (<a href="notebooks/{name}.ipynb">ipynb</a>)'
    if record["error"] is None:
        outcome = f"done in {record['seconds']:.0f} s"
    else:
        outcome = f'<span class="failed">failed</span> after {record["seconds"]:.0f} s: {escape(record["error"])}'
        outcome += _log(folder, record)
    tables = "<br>".join(
        f'<a href="{file}">{file}</a> (<a href="{file.removesuffix(".csv")}.json">provenance</a>)'
        for file in map(escape, record["files"])
        if file.endswith(".csv")
    )
    return f"<tr><td>{title}</td><td>{outcome}</td><td>{tables}</td></tr>"


def _log(folder: Path, of: Mapping[str, Any]) -> str:
    """A link to the log of a job."""
    if not isinstance(of.get("log"), str):
        return ""
    path = Path(of["log"])
    place = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()
    return f' (<a href="{escape(place)}">log</a>)'


def _figure(folder: Path, picture: str) -> str:
    caption = folder / Path(picture).with_suffix(".txt")
    try:
        text = caption.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = Path(picture).stem
    pdf = escape(str(Path(picture).with_suffix(".pdf").as_posix()))
    return (
        f'<figure><a href="{pdf}"><img src="{escape(picture)}" alt="{escape(text)}"></a>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )
