"""A fresh process: measures what standard input orders (`measure.serve`) and tells of it, one JSON object a line."""

import json
import os
import sys

from specquant.measure.measure import serve

if __name__ == "__main__":
    told = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr  # whatever else prints does not belong to what is told
    try:
        serve(json.load(sys.stdin), lambda what: print(json.dumps(what), file=told, flush=True))
    except KeyboardInterrupt:
        sys.exit(130)
