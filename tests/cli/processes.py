"""The command in a Python of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
Cli = Callable[..., tuple[int, str, str]]  # exit status, stdout, stderr
HEAVY = {"torch", "lightning", "pytorch_lightning", "numpy", "pandas", "scipy", "transformers", "wandb", "datasets"}


def in_process(*arguments: str, cwd: Path, before: str = "", **env: str) -> subprocess.Popen[str]:
    """Starts the command in a Python of its own, which at its end prints the heavy modules it holds to stderr."""
    code = (
        f"import sys, atexit; atexit.register(lambda: print('HEAVY', sorted({HEAVY!r} & set(sys.modules)), file="
        f"sys.stderr))\n{before}\nsys.argv[0] = 'mtlbench'\nfrom mtlbench.cli import main\nsys.exit(main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
