"""What `mtlbench doctor` finds, and that it never hangs."""

from __future__ import annotations

import http.server
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from mtlbench import doctor
from mtlbench.confdir import entries


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no login and no data of this machine."""
    monkeypatch.setattr(doctor, "unreachable", lambda url, **_: "the network is down")
    monkeypatch.setenv("MTLBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)


def statuses(look: Callable[[], Iterator[doctor.Check]]) -> dict[str, str]:
    return {check.name: check.status for check in look()}


def test_everything_is_shown_with_advice() -> None:
    out = io.StringIO()
    assert doctor.doctor(Console(file=out, width=200)) == 0
    text = out.getvalue()
    for expected in ("python", "torch", "precision on cpu", "Hugging Face hub", "data directory", "W&B", " 0 to mend"):
        assert expected in text
    assert "the network is down" in text
    assert all(f"benchmark={entry.name}" in text for entry in entries("benchmark"))


def test_a_missing_package_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    found = statuses(doctor.installation)
    assert (found["torch"], found["no-such-package"]) == ("ok", "fail")
    assert doctor.doctor(Console(file=io.StringIO())) == 1


def test_precision_on_this_cpu() -> None:
    (found,) = (check.found for check in doctor.devices() if check.name == "precision on cpu")
    assert "fp32 works, bf16" in found


def test_a_gpu_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(
        doctor, "_precision", lambda torch, device, half: doctor.Check(name=device, status="ok", found="")
    )
    assert any(check.name == "cuda:0" and "GPU 0" in check.found for check in doctor.devices())


@pytest.mark.parametrize(
    ("backends", "devices", "status", "expected"),
    [
        (["gloo"], 0, "ok", "trainer.devices=2 trainer.accelerator=cpu"),
        (["gloo", "nccl"], 4, "ok", "trainer.devices=4"),
        (["gloo"], 4, "warn", "no nccl"),
        ([], 0, "warn", "no gloo"),
    ],
)
def test_several_devices(
    backends: list[str], devices: int, status: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.setattr("torch.distributed.is_backend_available", backends.__contains__)
    (found,) = (check for check in doctor.devices() if check.name == "several devices")
    assert found.status == status
    assert expected in f"{found.found} {found.advice}"


def test_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = statuses(doctor.data)
    assert found["data directory"] == "ok"
    assert found["benchmark=multidigits"] == "ok"
    assert found["benchmark=school"] == "warn"
    (tmp_path / "tabular" / "school").mkdir(parents=True)
    (tmp_path / "tabular" / "school" / "school.csv.gz").touch()
    assert statuses(doctor.data)["benchmark=school"] == "ok"
    (tmp_path / "nlp" / "sst2").mkdir(parents=True)
    for split in ("train", "dev"):
        (tmp_path / "nlp" / "sst2" / f"{split}.jsonl.gz").touch()
    assert {check.name: check.found for check in doctor.data()}["benchmark=sst2"] == "missing: nlp/sst2/test"
    (tmp_path / "nlp" / "sst2" / "test.jsonl.gz").touch()
    assert statuses(doctor.data)["benchmark=sst2"] == "ok"

    monkeypatch.setenv("MTLBENCH_DATA", str(tmp_path / "nowhere"))
    assert statuses(doctor.data) == {"data directory": "fail"}

    monkeypatch.delenv("MTLBENCH_DATA")
    found = statuses(doctor.data)
    assert found["data directory"] == "warn"
    assert (found["benchmark=snips"], found["benchmark=school"]) == ("ok", "warn")


def test_offline_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(doctor, "unreachable", lambda url, **_: pytest.fail("asked the network"))
    hub, cached = doctor.hub()
    assert (hub.status, "HF_HUB_OFFLINE" in hub.found) == ("warn", True)
    assert cached.status == "ok"


def test_a_server_that_answers_is_reachable_whatever_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert doctor.unreachable(url) is None
    server.shutdown()
    server.server_close()
    assert "refused" in str(doctor.unreachable(url))


def test_no_look_takes_longer_than_its_time() -> None:
    never = threading.Event()
    start = time.perf_counter()
    assert doctor.in_time(lambda: str(never.wait()), timeout=0.1, otherwise="no answer") == "no answer"
    assert time.perf_counter() - start < 5
