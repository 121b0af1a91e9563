"""`make bench`: prints what the framework costs, as figures of one interleaved run.

`python -m tests.bench solvers` prints one of the tables alone.
"""

from __future__ import annotations

import argparse

from tests.bench import loader, overhead, solvers

TABLES = {"overhead": overhead.main, "loader": loader.main, "solvers": solvers.main}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure what mtlbench costs.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)}; all where none is named")
    chosen = parser.parse_args().tables
    if unknown := set(chosen) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}. There is: {', '.join(TABLES)}.")
    for name in chosen or TABLES:
        TABLES[name]()
