"""What a notebook finds: claims that were made on the models that ship, and are put to the test on any others."""

from collections.abc import Mapping


def check_findings(findings: Mapping[str, bool], shipped: bool) -> None:
    """Raise AssertionError where one of the findings, sentence -> whether it holds, does not hold on the models that
    come with the project; of other models print which hold."""
    if shipped:
        wrong = [sentence for sentence, holds in findings.items() if not holds]
        assert not wrong, "; ".join(wrong)
        return
    print("Found on the tiny models; on these models")
    for sentence, holds in findings.items():
        print(f"  {'it holds' if holds else 'it does not hold'}: {sentence}")
