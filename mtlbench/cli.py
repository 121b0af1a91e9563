"""The command `mtlbench`. Nothing heavy is imported before a command needs it.

Exit status: 0 done; 1 a run failed; 2 the command line or the configuration is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mtlbench import __version__
from mtlbench.confdir import KINDS, entries

COMMANDS = {
    "train": "train: one run, or a sweep with -m (a Hydra app: overrides, --cfg job, --help)",
    "report": "compare finished runs: a table here, CSV and HTML files beside them",
    "list": "show what there is: balancers, encoders, sharings, benchmarks, mixings, experiments",
    "doctor": "check the installation, and say what to do about what is wrong",
}
EXAMPLES = """\
examples:
  mtlbench train benchmark=multidigits balancer=pcgrad seed=1
  mtlbench train -m benchmark=snips balancer=independent,equal,pcgrad seed=0,1,2
  mtlbench report runs/sweeps/2026-11-22_16-00-00
  eval "$(mtlbench -sc install=bash)"        completion of the overrides of train

exit status: 0 done, 1 a run failed, 2 wrong command line or configuration, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("mtlbench: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mtlbench list | head`; what is still buffered must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] in (["-sc"], ["--shell-completion"]):
        return _complete(arguments)
    if arguments[:1] == ["train"]:
        from mtlbench.launch.app import train

        return train(arguments[1:])
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        return _unknown("command", arguments[0], COMMANDS)
    args = _parser().parse_args(arguments)
    if args.command == "report":
        return _report(args.run_dirs, out=args.out)
    if args.command == "list":
        return _list(args.kind)
    from mtlbench.doctor import doctor

    return doctor()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mtlbench",
        description="Multi-task learning: compare ways of sharing and balancing, and whether to trust the difference.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mtlbench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", title="commands")
    added = {name: commands.add_parser(name, help=help, description=help) for name, help in COMMANDS.items()}
    added["report"].add_argument(
        "run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="a run's directory, or a folder with runs below it"
    )
    added["report"].add_argument(
        "--out", type=Path, metavar="DIR", help="where report.html and the CSV files go (default: the first RUN_DIR)"
    )
    added["list"].add_argument(
        "kind", nargs="?", help="balancers, encoders, sharings, benchmarks, mixings, experiments"
    )
    return parser


def _complete(arguments: list[str]) -> int:
    """Hydra's completion, of which the shell knows as the program's own: without a command."""
    from mtlbench.launch.app import train

    program, *words = os.environ.get("COMP_LINE", "").split(" ")
    if arguments[1:2] and arguments[1].startswith("query="):
        if len(words) < 2 or words[0] == "list":
            print("\n".join(COMMANDS if len(words) < 2 else KINDS))
            return 0
        if words[0] != "train":
            return 0  # the shell then offers files
        os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
    return train(arguments)


def _unknown(what: str, name: str, known: Sequence[str] | dict[str, str]) -> int:
    from mtlbench.data.names import nearest

    print(f"mtlbench: no {what} '{name}'. {nearest(name, known)}", file=sys.stderr)
    return 2


def _list(kind: str | None) -> int:
    from rich.console import Console
    from rich.table import Table

    if kind is not None and kind not in KINDS and f"{kind}s" not in KINDS:
        return _unknown("list", kind, KINDS)
    console = Console()
    for shown in KINDS if kind is None else [kind if kind in KINDS else f"{kind}s"]:
        found = entries(KINDS[shown])
        console.print(f"\n[bold]{shown}[/] ({KINDS[shown]}=...)")
        table = Table()
        table.add_column("name", no_wrap=True, style="bold")
        table.add_column("description", overflow="fold")
        if any(entry.paper for entry in found):
            table.add_column("paper", overflow="fold")
        for entry in found:
            table.add_row(*[entry.name, entry.description, entry.paper][: len(table.columns)])
        console.print(table)
    return 0


def _report(run_dirs: list[Path], *, out: Path | None) -> int:
    from rich.console import Console

    from mtlbench.results.report import print_report, report

    try:
        written = report(run_dirs, out=run_dirs[0] if out is None else out)
    except (ValueError, OSError) as error:
        print(f"mtlbench report: {error}", file=sys.stderr)
        return 2
    print_report(written, Console())
    return 0
