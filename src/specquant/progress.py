"""Progress bars: a widget in JupyterLab, text in a terminal, nothing where TQDM_DISABLE is set."""

import os
import sys
from typing import Any

from tqdm import auto, std

IN_NOTEBOOK = auto.notebook_tqdm is not std.tqdm


class tqdm(auto.tqdm):
    """The bar of tqdm.auto, which in a notebook does not heed TQDM_DISABLE by itself: kept outputs would hold it."""

    def __init__(self, *arguments: Any, **options: Any):
        if os.environ.get("TQDM_DISABLE", "0") not in ("", "0"):
            options["disable"] = True
        super().__init__(*arguments, **options)


def tell(sentence: str) -> None:
    """Write a line beside a bar: to stderr, or in a notebook, where that would look like an error, to stdout."""
    tqdm.write(sentence, file=sys.stdout if IN_NOTEBOOK else sys.stderr)
