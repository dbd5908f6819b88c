"""Tokenizers are written in Rust, where damaged files can end in a panic: it is no Exception, and prints by itself."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a panic as a RuntimeError, and keep what is printed to standard error unless all went well."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as printed:
        standard_error = os.dup(2)
        os.dup2(printed.fileno(), 2)
        try:
            yield
        except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as panic:
            raise RuntimeError(f"{type(panic).__name__}: {panic}") from None
        else:
            sys.stderr.flush()
            printed.seek(0)
            os.write(standard_error, printed.read())
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
