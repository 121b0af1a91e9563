"""The folder of configs: where it is, and what is in it. The folder is the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# What `mtlbench list` shows, and the config group of each.
KINDS = {
    "balancers": "balancer",
    "encoders": "encoder",
    "sharings": "sharing",
    "benchmarks": "benchmark",
    "mixings": "mixing",
    "experiments": "experiment",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One YAML file of a config group, as its leading comment tells of it."""

    path: Path
    description: str
    paper: str

    @property
    def name(self) -> str:
        return self.path.stem


def conf_dir() -> Path:
    """The absolute path of conf/: inside the package in a wheel, beside it in a checkout.

    Raises:
        FileNotFoundError: there is none.
    """
    # An editable install also leaves a copy in site-packages, which goes stale. It is not beside this file.
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"mtlbench has lost its conf/ folder: neither in {here} nor beside it. Install it again.")


def groups() -> list[str]:
    """The names of the config groups."""
    return sorted(folder.name for folder in conf_dir().iterdir() if folder.is_dir())


def entries(group: str, config_dir: Path | None = None) -> list[Entry]:
    """What a config group offers, by name; with a config folder of one's own, whose files come before ours as in Hydra.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise FileNotFoundError(f"no config folder {config_dir}")
    folders = [conf_dir()] if config_dir is None else [conf_dir(), config_dir]
    paths = {path.stem: path for folder in folders for path in (folder / group).glob("*.yaml")}
    return [_read(path) for _, path in sorted(paths.items())]


def _read(path: Path) -> Entry:
    """Reads the leading comment alone: the first line describes, a line `# paper: ...` cites."""
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#") and not line.startswith("# @package"):
            comments.append(line.lstrip("#").strip())
    papers = [text.removeprefix("paper:").strip() for text in comments if text.startswith("paper:")]
    described = [text for text in comments if text and not text.startswith("paper:")]
    return Entry(path=path, description=described[0] if described else "", paper="; ".join(papers))
