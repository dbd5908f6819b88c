"""Downloads from a local server: whole and as published, or a sentence and no file."""

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from specquant.benchmarks import fetch as fetching
from specquant.benchmarks import registry
from specquant.benchmarks.benchmark import read_questions
from specquant.benchmarks.fetch import fetch
from specquant.benchmarks.registry import BENCHMARKS, get_benchmark
from specquant.cli import main
from specquant.errors import SpecquantError
from tests.questions import NAMES

CONTENT = b'{"question_id": 81}\n' * 1000


class Server(ThreadingHTTPServer):
    """Answers each path as its name says, and counts the requests."""

    def __init__(self):
        self.requests = 0
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        path = self.path.strip("/")
        if path == "moved":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.end_headers()
            return
        if path == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write({"torn": CONTENT[:5000], "changed": CONTENT[:-1] + b"!"}.get(path, CONTENT))

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def published(server):
    def published(path):
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        return replace(BENCHMARKS["mt-bench"], url=server.url(path), sha256=sha256)

    return published


@pytest.mark.parametrize("path", ["whole", "moved"])
def test_a_file_arrives_whole(published, tmp_path, path):
    assert fetch(published(path), tmp_path / "new/folder") == tmp_path / "new/folder/mt_bench.jsonl"
    assert (tmp_path / "new/folder/mt_bench.jsonl").read_bytes() == CONTENT
    assert [file.name for file in (tmp_path / "new/folder").iterdir()] == ["mt_bench.jsonl"]


def test_a_file_that_is_there_is_kept_and_a_damaged_one_replaced(published, tmp_path, server):
    file = fetch(published("whole"), tmp_path)
    before = server.requests
    fetch(published("whole"), tmp_path)
    assert server.requests == before
    file.write_bytes(CONTENT[:100])
    fetch(published("whole"), tmp_path)
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("torn", r"sent \(5000 bytes, SHA-256 \w{64}\) is not the published file"),
        ("changed", r"sent \(20000 bytes, .*is not the published file .*was not kept: try again"),
        ("missing", r"cannot download .*404.*put the file into .* as mt_bench.jsonl"),
    ],
)
def test_what_does_not_arrive_whole_is_not_kept(published, tmp_path, path, says):
    with pytest.raises(SpecquantError, match=says):
        fetch(published(path), tmp_path)
    assert not list(tmp_path.iterdir())
    # Nor does it harm a file that is there.
    (tmp_path / "mt_bench.jsonl").write_bytes(b"mine")
    with pytest.raises(SpecquantError, match=says):
        fetch(published(path), tmp_path)
    assert (tmp_path / "mt_bench.jsonl").read_bytes() == b"mine"


def test_a_server_that_cannot_be_reached_or_sends_too_much(published, tmp_path, monkeypatch):
    with pytest.raises(SpecquantError, match=r"cannot download http://127\.0\.0\.1:1/"):
        fetch(replace(published("whole"), url="http://127.0.0.1:1/"), tmp_path)
    monkeypatch.setattr(fetching, "MOST_BYTES", 100)
    with pytest.raises(SpecquantError, match=r"\(100 bytes"):
        fetch(published("whole"), tmp_path)


def test_the_command_fetches_all_or_some(published, tmp_path, monkeypatch, capsys):
    for name, benchmark in list(BENCHMARKS.items()):
        if name in NAMES:
            monkeypatch.setitem(BENCHMARKS, name, replace(published("whole"), name=name, file=benchmark.file))
        else:
            monkeypatch.delitem(BENCHMARKS, name)
    assert main(["data", "fetch", "gsm8k", "humaneval", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "gsm8k_test.jsonl"), str(tmp_path / "HumanEval.jsonl.gz")]
    assert main(["data", "fetch", "--data-dir", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.split()) == len(list(tmp_path.iterdir())) == 4
    assert main(["data", "fetch", "mmlu", "--data-dir", str(tmp_path)]) == 2
    assert "unknown benchmark 'mmlu'" in capsys.readouterr().err


def test_a_file_of_this_project_is_not_downloaded(published, tmp_path):
    ours = replace(published("whole"), url=None, file=str(tmp_path / "ours.jsonl"))
    (tmp_path / "ours.jsonl").write_bytes(CONTENT)
    assert fetch(ours, tmp_path / "elsewhere") == tmp_path / "ours.jsonl"
    (tmp_path / "ours.jsonl").write_bytes(CONTENT[:100])
    with pytest.raises(SpecquantError, match=r"ours\.jsonl is not as published: get it from the repository"):
        fetch(ours, tmp_path / "elsewhere")
    (tmp_path / "ours.jsonl").unlink()
    with pytest.raises(SpecquantError, match=r"there is no .*ours\.jsonl: get it from the repository"):
        read_questions(ours, tmp_path / "elsewhere")


def test_published_files_are_at_fixed_commits_with_a_checksum():
    for benchmark in map(get_benchmark, registry.published()):
        assert any(len(part) == 40 for part in benchmark.url.split("/")), benchmark.name
        assert len(benchmark.sha256) == 64
