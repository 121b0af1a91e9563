"""The command `mtlbench`. Nothing heavy is imported before a command needs it.

Exit status: 0 done; 1 a run failed; 2 the command line or the configuration is wrong; 130 interrupted; 143
terminated.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mtlbench import __version__
from mtlbench.confdir import KINDS
from mtlbench.processes import Terminated

COMMANDS = {
    "train": "train: one run, or a sweep with -m (a Hydra app: overrides, --cfg job, --help)",
    "evaluate": "test a finished run's saved weights again, and compare with what it recorded",
    "predict": "predict with a finished run: JSON lines in, JSON lines out",
    "export": "write one task of a finished run as a folder that plain transformers loads",
    "report": "compare finished runs: a table here, CSV and HTML files beside them",
    "data": "data show BENCHMARK: its datasets' rows, lengths, labels, overlaps and examples",
    "list": "show what there is: balancers, encoders, sharings, benchmarks, mixings, experiments",
    "audit": "audit KEY=VALUE ...: what each task's loss reaches in a configured model, and what is wrong with that",
    "doctor": "check the installation, and say what to do about what is wrong",
}
EXAMPLES = """\
examples:
  mtlbench train benchmark=multidigits balancer=pcgrad seed=1
  mtlbench train -m benchmark=snips balancer=independent,equal,pcgrad seed=0,1,2
  mtlbench report runs/sweeps/2026-11-22_16-00-00
  mtlbench predict runs/snips/2026-11-22_16-00-00_equal_seed=0 input.jsonl --task all
  eval "$(mtlbench -sc install=bash)"        completion of the overrides of train

exit status: 0 done, 1 a run failed, 2 wrong command line or configuration, 130 interrupted, 143 terminated
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except Terminated:
        print(
            "mtlbench: terminated. Where the command names its directory (hydra.run.dir, hydra.sweep.dir), the same "
            "command goes on.",
            file=sys.stderr,
        )
        return 143
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
    parser = _parser()
    args, more = parser.parse_known_args(arguments)
    if args.command in ("data", "audit"):  # argparse takes no overrides behind an option
        args.overrides += [word for word in more if not word.startswith("-")]
        more = [word for word in more if word.startswith("-")]
    if more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if args.command == "report":
        return _report(args.run_dirs, out=args.out)
    if args.command == "data":
        from mtlbench.launch.show import show

        return show(args.benchmark, args.overrides, config_dir=args.config_dir)
    if args.command == "audit":
        from mtlbench.launch.audit import audit

        return audit(args.overrides, config_dir=args.config_dir)
    if args.command == "list":
        return _list(args.kind, config_dir=args.config_dir)
    if args.command in ("evaluate", "predict", "export"):
        return _after_training(args)
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
    for name in ("evaluate", "predict", "export"):
        added[name].add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the directory of a finished run")
        added[name].add_argument(
            "--trust-code", action="store_true", help="let the run's config call code from outside mtlbench"
        )
    added["evaluate"].add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where the datasets lie (default: where they lay in training)"
    )
    added["predict"].add_argument("input", help='a file of lines such as {"text": "..."}; - for the standard input')
    added["predict"].add_argument("--task", required=True, help="the task's name; all: every task, encoding once")
    added["predict"].add_argument("--out", type=Path, metavar="FILE", help="overwritten; default: the standard output")
    added["predict"].add_argument("--batch-size", type=int, default=64, metavar="N", help="examples computed at once")
    added["predict"].add_argument("--device", default="cpu", help="cpu (the default), cuda, mps")
    added["export"].add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    added["export"].add_argument("--task", required=True, help="the task's name")
    actions = added["data"].add_subparsers(dest="action", required=True, metavar="action")
    shown = actions.add_parser("show", help=COMMANDS["data"].partition(": ")[2], description=COMMANDS["data"])
    shown.add_argument("benchmark", metavar="BENCHMARK", help="a name that `mtlbench list benchmarks` shows")
    for command in (shown, added["audit"]):
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the configuration, as for train")
        command.add_argument(
            "--config-dir", type=Path, metavar="DIR", help="a folder of your own configs, as for train"
        )
    added["list"].add_argument(
        "kind", nargs="?", help="balancers, encoders, sharings, benchmarks, mixings, experiments"
    )
    added["list"].add_argument("--config-dir", type=Path, metavar="DIR", help="show what is in your own configs too")
    return parser


def _complete(arguments: list[str]) -> int:
    """Hydra's completion, of which the shell knows as the program's own: without a command."""
    from mtlbench.launch.app import train

    program, *words = os.environ.get("COMP_LINE", "").split(" ")
    if arguments[1:2] and arguments[1].startswith("query="):
        if len(words) < 2 or words[0] == "list":
            print("\n".join(COMMANDS if len(words) < 2 else KINDS))
            return 0
        if words[0] not in ("train", "audit"):
            return 0  # the shell then offers files
        os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
    return train(arguments)


def _unknown(what: str, name: str, known: Sequence[str] | dict[str, str]) -> int:
    from mtlbench.data.names import nearest

    print(f"mtlbench: no {what} '{name}'. {nearest(name, known)}", file=sys.stderr)
    return 2


def _list(kind: str | None, *, config_dir: Path | None) -> int:
    if kind is not None and kind not in KINDS and f"{kind}s" not in KINDS:
        return _unknown("list", kind, KINDS)
    from mtlbench.listing import show

    try:
        show([*KINDS] if kind is None else [kind if kind in KINDS else f"{kind}s"], config_dir=config_dir)
    except (ValueError, FileNotFoundError) as error:
        print(f"mtlbench list: {error}", file=sys.stderr)
        return 2
    return 0


def _after_training(args: argparse.Namespace) -> int:
    from mtlbench.results.records import config_path

    try:
        config_path(args.run_dir)  # before torch, which takes seconds
        from mtlbench.inference import commands

        if args.command == "evaluate":
            return commands.run_evaluate(args.run_dir, data_dir=args.data_dir, trust_code=args.trust_code)
        if args.command == "export":
            return commands.run_export(args.run_dir, task=args.task, out=args.out, trust_code=args.trust_code)
        return commands.run_predict(
            args.run_dir,
            args.input,
            task=args.task,
            out=args.out,
            batch_size=args.batch_size,
            device=args.device,
            trust_code=args.trust_code,
        )
    except (ValueError, OSError, ImportError) as error:  # the last where peft is missing
        if isinstance(error, BrokenPipeError):
            raise
        print(f"mtlbench {args.command}: {error}", file=sys.stderr)
        return 2


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
