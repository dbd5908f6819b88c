"""A fresh process: measures what standard input orders and tells of it, one JSON object a line.

The order names the module whose `serve` does it.
"""

import json
import os
import sys
from importlib import import_module

if __name__ == "__main__":
    told = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr  # whatever else prints does not belong to what is told
    order = json.load(sys.stdin)
    try:
        import_module(order["served_by"]).serve(order, lambda what: print(json.dumps(what), file=told, flush=True))
    except KeyboardInterrupt:
        sys.exit(130)
