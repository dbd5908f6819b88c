"""Where there is no Triton, as on macOS, everything imports and the references run."""

import json
import subprocess
import sys

PROGRAM = """
import importlib, json, pkgutil, sys
sys.modules["triton"] = None  # importing it fails
import specquant
for module in pkgutil.walk_packages(specquant.__path__, "specquant."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from specquant.kernels import launch
assert launch.triton is None
from specquant.cli import main
for method in ("autoregressive", "hierarchical"):
    assert main([*sys.argv[1:], "--method", method]) == 0
"""


def test_without_triton_all_modules_import_and_every_method_decodes(small_models):
    command = ["generate", "--model", str(small_models / "target"), "--scheme", "w4a16-g128", "--prompt", "1 plus 1"]
    options = ["--max-new-tokens", "8", "--json"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, other = (json.loads(line)["text"] for line in done.stdout.splitlines())
    assert one == other
