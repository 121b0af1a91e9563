"""`mtlbench doctor`: checks the installation, and says what to do about what is wrong."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.table import Table

from mtlbench.confdir import conf_dir
from mtlbench.data.nodes import SPLITS, all_paths, split_of

TIMEOUT = 3.0  # seconds for each look at the network
PACKAGES = ("torch", "lightning", "transformers", "hydra-core", "wandb", "datasets", "tokenizers", "torchmetrics")
MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was looked at, what was found, and what to do about it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def doctor(console: Console | None = None) -> int:
    """Prints all checks; returns 1 where one failed, else 0."""
    console = Console() if console is None else console
    table = Table(title="mtlbench doctor", title_justify="left")
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    checks = []
    with console.status("looking ..."):
        for look in (installation, devices, hub, data, tracking):
            checks += list(look())
    for check in checks:
        table.add_row(check.name, MARKS[check.status], check.found, check.advice)
    console.print(table)
    count = {status: sum(check.status == status for check in checks) for status in MARKS}
    console.print(f"{count['ok']} ok, {count['warn']} to know of, {count['fail']} to mend")
    return 1 if count["fail"] else 0


def installation() -> Iterator[Check]:
    """Python, the packages, the configuration."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Check(name="python", status="ok", found=found)  # an older one could not have installed mtlbench
    for package in PACKAGES:
        try:
            yield Check(name=package, status="ok", found=importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Check(name=package, status="fail", found="missing", advice=f"pip install {package}, or make install")
    yield Check(name="configs", status="ok", found=str(conf_dir()))


def devices() -> Iterator[Check]:
    """What there is to compute on, and in which precision."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        yield Check(name="cpu", status="fail", found=f"torch cannot be imported: {error}", advice="install torch again")
        return
    yield Check(name="cpu", status="ok", found=f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    yield _precision(torch, device="cpu", half="on a CPU use bf16-mixed; Lightning takes 16-mixed as bf16 there")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = f"{torch.cuda.get_device_name(index)}, CUDA {torch.version.cuda}"
            yield Check(name=f"cuda:{index}", status="ok", found=found)
            yield _precision(torch, device=f"cuda:{index}", half="")
    elif torch.version.cuda is not None:
        advice = "install a driver for this CUDA, or train on the CPU"
        yield Check(name="cuda", status="warn", found=f"torch has CUDA {torch.version.cuda}, no device", advice=advice)
    else:
        yield Check(name="cuda", status="ok", found="none: this torch is built for the CPU")
    if torch.backends.mps.is_available():
        yield Check(name="mps", status="ok", found="available: trainer.accelerator=mps")
    yield _several(torch)


def _several(torch: Any) -> Check:
    """What processes of one run could exchange gradients by."""
    name, number = "several devices", torch.cuda.device_count()
    if not torch.distributed.is_available():
        return Check(
            name=name, status="warn", found="torch has no torch.distributed", advice="install another torch for them"
        )
    there = [backend for backend in ("gloo", "nccl") if torch.distributed.is_backend_available(backend)]
    missing = [backend for backend in ("gloo", *(["nccl"] if number > 1 else [])) if backend not in there]
    if missing:
        return Check(name=name, status="warn", found=f"no {' and no '.join(missing)}", advice="install another torch")
    advice = f"trainer.devices={number}" if number > 1 else "trainer.devices=2 trainer.accelerator=cpu tries them out"
    return Check(name=name, status="ok", found=f"by {', '.join(there)}", advice=advice)


def _precision(torch: Any, *, device: str, half: str) -> Check:
    """Which of bf16 and fp16 a small training step works in."""
    works = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        try:
            with torch.autocast(device.partition(":")[0], dtype=dtype):
                layer = torch.nn.Linear(8, 8, device=device)
                layer(torch.ones(4, 8, device=device)).sum().backward()
            works[name] = "works"
        except RuntimeError as error:
            works[name] = f"does not ({str(error).splitlines()[0]})"
    found = ", ".join(f"{name} {result}" for name, result in works.items())
    status: Literal["ok", "warn"] = "ok" if works["bf16"] == "works" else "warn"
    return Check(name=f"precision on {device}", status=status, found=f"fp32 works, {found}", advice=half)


def hub() -> Iterator[Check]:
    """Whether pretrained weights and datasets can be had from the Hugging Face hub, and what is here already."""
    try:
        from huggingface_hub import constants, scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ImportError as error:
        yield Check(name="Hugging Face hub", status="fail", found=str(error), advice="make install")
        return
    advice = "encoder=pretrained then takes a local folder or a cached model, and data come from MTLBENCH_DATA"
    if constants.HF_HUB_OFFLINE:
        yield Check(name="Hugging Face hub", status="warn", found="switched off (HF_HUB_OFFLINE)", advice=advice)
    else:
        reason = unreachable(constants.ENDPOINT)
        found = "reachable" if reason is None else f"{constants.ENDPOINT} not reachable: {reason}"
        yield Check(
            name="Hugging Face hub", status="warn" if reason else "ok", found=found, advice=advice if reason else ""
        )
    try:
        repos = sorted(f"{repo.repo_id} ({repo.repo_type})" for repo in scan_cache_dir().repos)
    except CacheNotFound:
        repos = []
    shown = ", ".join(repos[:5]) + (f" and {len(repos) - 5} more" if len(repos) > 5 else "")
    yield Check(name="cached from the hub", status="ok", found=shown or "nothing")


def data() -> Iterator[Check]:
    """The data directory, and which benchmarks find their files in it."""
    given = os.environ.get("MTLBENCH_DATA")
    if not given:
        advice = "set MTLBENCH_DATA to a folder with the data; without it they come from the hub"
        yield Check(name="data directory", status="warn", found="MTLBENCH_DATA is not set", advice=advice)
    elif not Path(given).is_dir():
        advice = "set MTLBENCH_DATA to a folder that exists, or unset it to use the hub"
        yield Check(name="data directory", status="fail", found=f"MTLBENCH_DATA={given}: no such folder", advice=advice)
        return
    else:
        yield Check(name="data directory", status="ok", found=given)
    for path in sorted((conf_dir() / "benchmark").glob("*.yaml")):
        benchmark = yaml.safe_load(path.read_text(encoding="utf-8"))["benchmark"]
        yield _benchmark(path.stem, benchmark, folder=Path(given) if given else None)


def _benchmark(name: str, benchmark: Mapping[str, Any], *, folder: Path | None) -> Check:
    """Where the datasets of one benchmark come from."""
    from_files = [dataset for dataset in benchmark.get("datasets", {}).values() if "path" in dataset]
    title = f"benchmark={name}"
    if not from_files:
        return Check(name=title, status="ok", found="embedded or made by code")
    if folder is None:
        if all(dataset.get("hub") for dataset in from_files):
            return Check(name=title, status="ok", found="from the hub")
        return Check(name=title, status="warn", found="not on the hub", advice="set MTLBENCH_DATA")
    paths = [path for dataset in from_files for some in all_paths(dataset["path"]).values() for path in some]
    missing = [text for path in paths for text in _missing(folder, path)]
    if missing:
        found = f"missing: {', '.join(dict.fromkeys(missing))}"
        return Check(name=title, status="warn", found=found, advice=f"put them in {folder}")
    folders = (path if (folder / path).is_dir() else str(PurePath(path).parent) for path in paths)
    return Check(name=title, status="ok", found=f"in {', '.join(dict.fromkeys(folders))}")


def _missing(folder: Path, path: str) -> list[str]:
    """What is not there of a file, or of a folder's train, val and test."""
    if not (folder / path).is_dir():
        return [] if (folder / path).is_file() else [path]
    found = {split_of(file.name.partition(".")[0]) for file in (folder / path).iterdir()}
    return [f"{path}/{split}" for split in SPLITS if split not in found]


def tracking() -> Iterator[Check]:
    """Weights & Biases: installed, logged in, reachable. mtlbench needs none of it."""
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        yield Check(name="W&B", status="warn", found=f"cannot be imported: {error}", advice="pip install wandb")
        return
    settings = wandb.setup().settings
    offline = "logger=wandb writes offline runs, which `wandb sync` uploads later"
    if settings.mode in ("offline", "disabled"):
        yield Check(name="W&B", status="ok", found=f"mode {settings.mode}", advice=offline)
    elif not wandb.login(prompt=False, verify=False):
        yield Check(name="W&B", status="ok", found="not logged in", advice=f"{offline}; `wandb login` changes that")
    else:
        reason = unreachable(settings.base_url)
        if reason is None:
            yield Check(name="W&B", status="ok", found=f"logged in, {settings.base_url} reachable")
        else:
            found, advice = f"logged in, {settings.base_url} not reachable: {reason}", "set WANDB_MODE=offline"
            yield Check(name="W&B", status="warn", found=found, advice=advice)


def unreachable(url: str, *, timeout: float = TIMEOUT) -> str | None:
    """Why a server does not answer within `timeout` seconds; None where it does, with whatever status."""

    def ask() -> str | None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
        except urllib.error.HTTPError:  # an answer, if not a welcoming one
            return None
        except OSError as error:  # URLError, timeouts, certificates
            return str(error)
        return None

    return in_time(ask, timeout=timeout, otherwise=f"no answer within {timeout:g} s")


def in_time(ask: Callable[[], str | None], *, timeout: float, otherwise: str) -> str | None:
    """The answer of `ask`, or `otherwise` if it takes longer: looking up a name heeds no timeout of its own."""
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(ask()), daemon=True).start()
    try:
        return answers.get(timeout=timeout)
    except queue.Empty:
        return otherwise
