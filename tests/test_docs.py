"""docs/checkpoints.md: its numbers are those that the commands count. The commands of all pages are ours."""

import re
import shlex

import pytest
import torch

from specquant.cli import command_line, parsed
from specquant.files import project_root
from specquant.models.cache import KVCache
from specquant.models.eagle import EagleHead
from specquant.models.llama import Llama
from specquant.models.loading import weight_bytes
from specquant.models.quantize import quantization_bytes
from specquant.models.synthetic import synthetic_config
from specquant.quant import get_scheme

PAGE = (project_root() / "docs/checkpoints.md").read_text()


def skeleton(model, scheme="fp16", context=512):
    with torch.device("meta"):
        return Llama(synthetic_config(model), scheme, context)


def head_bytes(model):
    config = synthetic_config(model)
    config.num_hidden_layers = 1
    with torch.device("meta"):
        head = EagleHead(config, None, None, context_length=4096)
    return sum(tensor.nbytes for tensor in (*head.parameters(), *head.buffers()))


def needed(what, model):
    kind, _, scheme = what.partition(", ")
    match kind:
        case "weights":
            return weight_bytes(skeleton(model, scheme, 4096), torch.float16, "cuda")
        case "quantize":
            return quantization_bytes(skeleton(model), get_scheme(scheme), calibrated=True)
        case "EAGLE head":
            return head_bytes(model)
    assert what == "cache of 4096 positions, for each method"
    return 4096 * KVCache.bytes_per_position(synthetic_config(model), torch.float16)


def test_memory_is_what_the_commands_count():
    rows = re.findall(r"^\| ([\w ,-]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 10
    for what, *said in rows:
        for model, gigabytes in zip(("llama-3-8b", "llama-3-70b"), said, strict=True):
            assert f"{needed(what, model) / 1e9:.1f}" == gigabytes, (what, model)


GUIDE = {
    path.stem: path.read_text() for path in [*(project_root() / "docs").glob("*.md"), project_root() / "README.md"]
}


def commands(page=PAGE):
    blocks = re.sub(r"\\\n\s+", "", page)
    return re.findall(r"^    specquant (.*?)(?:\s+#.*)?$", blocks, re.MULTILINE)


@pytest.mark.parametrize("command", [line for page in GUIDE.values() for line in commands(page)])
def test_every_command_is_one_that_we_have(command):
    parsed(command_line(), shlex.split(command))


def test_there_are_commands():
    assert [command.split()[0] for command in commands()] == [
        *("data", "quantize", "train-head", "distill", "prepare", "study", "study", "bench", "generate")
    ]
    told = {name: {command.split()[0] for command in commands(page)} for name, page in GUIDE.items()}
    assert {name for name in told if told[name]} >= {"checkpoints", "findings", "models", "planner"}
    assert "plan" in told["findings"]


def test_the_page_of_commands_has_all_of_them():
    app = command_line()
    names = [name for name in (*app, *app["bench"]) if not name.startswith("-") and name not in ("bench", "data")]
    assert len(names) > 30
    assert [name for name in names if not re.search(rf"`(specquant (bench )?)?{name}\b", GUIDE["commands"])] == []


ROOT = project_root()
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for name in ("docs", "data", "figures") for page in (ROOT / name).rglob("*.md"))]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_has_one_title(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert prose.startswith("# ")
    assert len(re.findall(r"^# ", prose, flags=re.MULTILINE)) == 1


def test_the_readme_fits_on_a_screen_or_two():
    assert len(GUIDE["README"].splitlines()) <= 60
