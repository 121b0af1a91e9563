"""Balancers that see the whole Jacobian, in whole runs: accumulation, resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtlbench.train import train
from tests.conftest import config
from tests.lit.runs import killed, weights

RUNS = ["graddrop", "db_mtl", "moco", "excess_mtl", "trimmed_mean"]


def overrides(name: str) -> tuple[str, ...]:
    """Five tasks for the one that needs more than two."""
    benchmark = "multidigits5" if name == "trimmed_mean" else "multidigits"
    return f"benchmark={benchmark}", f"balancer={name}"


@pytest.mark.parametrize("name", RUNS)
def test_four_micro_batches_equal_one_batch(name: str, tmp_path: Path) -> None:
    shared = (*overrides(name), "trainer.max_epochs=1", "trainer.precision=64-true", "trainer.gradient_clip_val=0.5")
    train(config(*shared), run_dir=tmp_path / "whole")
    train(config(*shared, "data.batch_size=8", "trainer.accumulate_grad_batches=4"), run_dir=tmp_path / "parts")
    for (key, a), b in zip(weights(tmp_path / "whole").items(), weights(tmp_path / "parts").values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=f"{key} differs")


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    given = (*overrides(name), "callbacks.last.every_n_steps=2", "encoder.dropout=0.2", "trainer.max_epochs=3")
    train(config(*given), run_dir=tmp_path / "whole")
    checkpoint = killed(config(*given), run_dir=tmp_path / "killed", at=(1, 1))
    assert checkpoint["global_step"] == 4
    train(config(*given), run_dir=tmp_path / "killed")
    for (key, a), b in zip(weights(tmp_path / "whole").items(), weights(tmp_path / "killed").values(), strict=True):
        assert torch.equal(a, b), key
