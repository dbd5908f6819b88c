"""A unit that sleeps, in a process that loads nothing: for what 1,000 units cost besides what they compute."""

import json
import os
import sys
import time
from pathlib import Path

PROVENANCE = "SPECQUANT_TEST_PROVENANCE"  # of every part, as JSON

if __name__ == "__main__":
    order = json.load(sys.stdin)
    for unit in order["units"]:
        time.sleep(float(order["parameters"]["seconds"]))
        rows = [unit | {"size": size, "square": unit["process"] ** 2} for size in (1, 2)]
        part = {"unit": unit, "provenance": json.loads(os.environ[PROVENANCE]), "rows": rows}
        folder = Path(order["paths"][0]).with_suffix(".parts")
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{unit['process']}.tmp"
        unfinished.write_text(json.dumps(part))
        unfinished.replace(folder / f"synthetic_{unit['process']}.json")
        print(json.dumps({"done": unit}), flush=True)
