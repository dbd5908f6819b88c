"""The job of a notebook: executes what standard input orders (`batch.serve`), and tells its record as one JSON line."""

import json
import os
import sys

from specquant.study.batch import serve

if __name__ == "__main__":
    told = os.fdopen(os.dup(1), "w")
    sys.stdout = sys.stderr
    serve(json.load(sys.stdin), lambda what: print(json.dumps(what, default=str), file=told, flush=True))
