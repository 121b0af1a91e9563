"""The wheel, installed into a clean environment, away from the repository; and the files that install it."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and its dependencies, but without the repository."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    pip("install", "--no-index", "--no-deps", "--target", str(site), str(wheel))
    # The dependencies as they are installed here. The .pth file of an editable install in there is not read.
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(here))
    return folder / "bin" / "python"


def run(python: Path, *arguments: str, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MTLBENCH_DATA")}
    done = subprocess.run(
        [str(python), *arguments],
        check=False,
        cwd=cwd,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path for path in (ROOT / "mtlbench").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    configs = {f"mtlbench/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    expected = {str(path.relative_to(ROOT)) for path in sources} | configs
    assert "mtlbench/conf/train.yaml" in expected
    assert expected <= names
    strangers = {name for name in names - expected if not re.match(r"mtlbench-[\d.]+\.dist-info/", name)}
    assert not strangers


def test_the_metadata_are_complete(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = archive.read(f"{folder}/METADATA").decode()
    for field in ("Summary:", "License-Expression: Apache-2.0", "License-File: LICENSE", "Keywords:", "Classifier:"):
        assert f"\n{field}" in metadata
    assert "\nRequires-Python: >=3.11" in metadata
    assert "mtlbench = mtlbench.cli:main" in archive.read(f"{folder}/entry_points.txt").decode()
    assert "\n# " in metadata, "README.md is the long description"


def test_configs_are_found_in_the_wheel(python: Path, tmp_path: Path) -> None:
    where = run(python, "-c", "from mtlbench.confdir import conf_dir; print(conf_dir())", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(python.parent.parent)
    assert "pcgrad" in run(python, "-m", "mtlbench", "list", "balancers", cwd=tmp_path)
    assert "max_epochs: 3" in run(
        python, "-m", "mtlbench", "train", "--cfg", "job", "trainer.max_epochs=3", cwd=tmp_path
    )


def test_a_training_from_the_wheel(python: Path, tmp_path: Path) -> None:
    small = [f"benchmark.datasets.digits.load.{split}=60" for split in ("train", "val", "test")]
    run(
        python, "-m", "mtlbench", "train", "benchmark=multidigits", "balancer=pcgrad", "trainer.max_epochs=1",
        "hydra.run.dir=run", *small, cwd=tmp_path,
    )  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["method"]) == ("finished", "pcgrad")
    run(python, "-m", "mtlbench", "report", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "report.html").exists()


def test_a_stale_copy_of_an_editable_install_is_not_read(tmp_path: Path) -> None:
    stale = tmp_path / "site-packages"
    (stale / "mtlbench" / "conf").mkdir(parents=True)
    code = "from mtlbench.confdir import conf_dir; print(conf_dir())"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(stale), str(ROOT)])}
    out = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True)
    assert Path(out.strip()) == ROOT / "conf"


def test_constraints_pin_the_whole_closure() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), f"{line}: expected name==version alone"
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines}

    extras = PROJECT["optional-dependencies"]
    todo = [Requirement(text) for text in [*PROJECT["dependencies"], *extras["dev"], *extras["tensorboard"]]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        # CUDA builds of torch bring pinned packages of their own.
        if key in seen or key[0].startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add(key)
        assert key[0] in pinned | {"setuptools", "pip"}, f"constraints.txt lacks {key[0]}"
        try:
            texts = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:  # a partial development environment
            continue
        for text in texts:
            below = Requirement(text)
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in ("", *key[1])):
                todo.append(below)
    assert len(seen) > 50


def test_ranges_admit_the_constraints() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    versions = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for text in itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), text


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert targets is not None
    out = subprocess.check_output(["make", "--no-print-directory", "help"], cwd=ROOT, text=True)
    assert [line.split()[1] for line in out.splitlines()] == targets[1].split()
