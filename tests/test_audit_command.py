"""`mtlbench audit`: configured models, clean and broken, wrong configurations, completion."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlbench.cli import main
from mtlbench.confdir import conf_dir


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield lambda *arguments: (main(["audit", *arguments]), *capsys.readouterr())
    root.handlers[:], root.level = before


SHARINGS = sorted(path.stem for path in (conf_dir() / "sharing").glob("*.yaml"))


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("benchmark", ["multidigits5", "number_words"])
def test_every_sharing(cli: Any, sharing: str, benchmark: str) -> None:
    status, out, err = cli(f"benchmark={benchmark}", f"sharing={sharing}", "data.batch_size=16")
    assert status == 0, out + err
    assert "Nothing wrong was found." in out
    assert "encoder" in out


@pytest.mark.parametrize("encoder", ["mlp", "transformer"])
def test_encoders(cli: Any, encoder: str) -> None:
    benchmark = "multidigits" if encoder == "mlp" else "number_words"
    status, out, err = cli(f"benchmark={benchmark}", f"encoder={encoder}", "mixing=joint", "data.batch_size=8")
    assert status == 0, out + err


def test_a_configured_model_that_is_wrong(cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my" / "encoder").mkdir(parents=True)
    (tmp_path / "my" / "encoder" / "frozen.yaml").write_text("# Detached\n_target_: frozen_encoder.frozen\n")
    (tmp_path / "my" / "frozen_encoder.py").write_text(
        "from mtlbench.models.encoders.base import Stage\n"
        "from mtlbench.models.encoders.lenet import lenet\n\n"
        "def frozen(*, spec):\n"
        "    encoder = lenet(spec=spec)\n"
        "    encoder.stages.append(Stage(lambda x: x.detach()))\n"
        "    return encoder\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "my")
    status, out, err = cli("--config-dir", "my", "encoder=frozen", "data.batch_size=8")
    assert status == 1, out + err
    assert "reaches no shared parameter" in out.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["balancer=pcgard"], "no balancer 'pcgard'. Did you mean pcgrad or"),
        (["benchmark=toy2d"], "trains no network"),
        (["data.batch_size=0"], "data.batch_size=0: expected a whole number of at least 1"),
        (["sede=1"], "no key 'sede' in the config. Did you mean seed or"),
    ],
)
def test_a_wrong_configuration(cli: Any, words: list[str], said: str) -> None:
    status, out, err = cli(*words)
    assert (status, out) == (2, "")
    assert err.startswith("mtlbench audit: ")
    assert said in err


@pytest.mark.parametrize(
    ("line", "expected"), [("mtlbench audit balancer=pcg", "balancer=pcgrad"), ("mtlbench aud", "audit")]
)
def test_completion(monkeypatch: pytest.MonkeyPatch, cli: Any, line: str, expected: str) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    capture = subprocess.run(
        [sys.executable, "-m", "mtlbench", "-sc", "query=bash"], capture_output=True, text=True, check=True
    )
    assert expected in capture.stdout.split()


def test_nothing_heavy_for_a_wrong_configuration() -> None:
    code = "import sys; from mtlbench.cli import main; main(['audit', 'sede=1']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
