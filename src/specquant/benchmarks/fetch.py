"""Downloading the benchmarks' files: whole and as published, or not at all."""

import hashlib
from pathlib import Path

from specquant.benchmarks.benchmark import Benchmark
from specquant.errors import SpecquantError
from specquant.files import write_file

TIMEOUT_S = 30  # without a byte
MOST_BYTES = 32_000_000  # the largest file has 750,000


def fetch(benchmark: Benchmark, data_dir: str | Path) -> Path:
    """Download a benchmark's file into a folder, unless it is there already; returns its path.

    A relative folder is below the project root. What arrives is checked against the SHA-256 of the published file and
    written in one go, replacing a damaged file; an interrupted download leaves nothing behind and starts again. Raises
    SpecquantError where the download fails, the checksum differs or the folder cannot be written.
    """
    from http.client import HTTPException
    from urllib.request import urlopen

    path = benchmark.path(data_dir)
    try:
        if path.is_file() and _sha256(path.read_bytes()) == benchmark.sha256:
            return path
    except OSError as error:
        raise SpecquantError(f"cannot read {path} ({error.strerror}): remove it, or choose another folder") from None
    if benchmark.url is None:
        raise SpecquantError(f"{path} is not as published: get it {benchmark.remedy(data_dir)}")
    try:
        with urlopen(benchmark.url, timeout=TIMEOUT_S) as response:
            content = response.read(MOST_BYTES)
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        raise SpecquantError(
            f"cannot download {benchmark.url} ({error}): check the network, or put the file into {data_dir} as "
            f"{benchmark.file}"
        ) from None
    if _sha256(content) != benchmark.sha256:
        raise SpecquantError(
            f"what {benchmark.url} sent ({len(content)} bytes, SHA-256 {_sha256(content)}) is not the published file "
            f"(SHA-256 {benchmark.sha256}), and was not kept: try again"
        )
    return write_file(path, content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
