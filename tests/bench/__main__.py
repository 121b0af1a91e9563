"""`make bench`: prints what the framework costs, as figures of one interleaved run.

`python -m tests.bench solvers` prints one of the tables alone.
"""

from __future__ import annotations

import argparse
import functools

from tests.bench import approximations, loader, overhead, solvers, steps

TABLES = {
    "overhead": overhead.main,
    "loader": loader.main,
    "solvers": solvers.main,
    "steps": steps.main,
    "approximations": approximations.main,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure what mtlbench costs.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)}; all where none is named")
    parser.add_argument(
        "--settings", metavar="A,B", help="of steps, such as mlp10-b32; all where none is named, and written"
    )
    parser.add_argument(
        "--repetitions", type=int, default=steps.REPETITIONS, metavar="N", help="of steps: timed steps, at least"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}. There is: {', '.join(TABLES)}.")
    settings = None if arguments.settings is None else arguments.settings.split(",")
    TABLES["steps"] = functools.partial(steps.main, settings, repetitions=arguments.repetitions)
    for name in arguments.tables or TABLES:
        TABLES[name]()
