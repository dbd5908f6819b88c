"""What a notebook finds: claims that were made on the models that ship, and are put to the test on any others."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from specquant.files import write_file

FINDINGS = "SPECQUANT_FINDINGS"  # the file in which the batch reads what a notebook found


def check_findings(findings: Mapping[str, bool], shipped: bool) -> None:
    """Put findings to the test; in the batch, also tell them to its report.

    Args:
        findings: Sentence -> whether it holds.
        shipped: Whether the models are those that come with the project. Of others it prints which findings hold.

    Raises:
        AssertionError: One of the findings does not hold on the models that come with the project.
    """
    if file := os.environ.get(FINDINGS):
        told = read_findings(Path(file)) | {sentence: bool(holds) for sentence, holds in findings.items()}
        write_file(file, json.dumps(told))
    if shipped:
        wrong = [sentence for sentence, holds in findings.items() if not holds]
        assert not wrong, "; ".join(wrong)
        return
    print("Found on the tiny models; on these models")
    for sentence, holds in findings.items():
        print(f"  {'it holds' if holds else 'it does not hold'}: {sentence}")


def read_findings(file: Path) -> dict[str, bool]:
    """What notebooks have told in this file; nothing where it is not there or damaged."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
