"""A loss scaler around the balanced backward: unscaled before any weight, overflow skips the step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlbench.lit.module import MultiTaskModule

Run = Callable[..., tuple[Path, dict[str, Any]]]


def scaler(init_scale: float) -> tuple[str, ...]:
    """Lightning takes 16-mixed for bf16 on a CPU; its plugin with a scaler of its own does what a GPU would."""
    plugin = (
        "{_target_: lightning.pytorch.plugins.MixedPrecision, precision: 16-mixed, device: cpu, "
        f"scaler: {{_target_: torch.amp.GradScaler, device: cpu, init_scale: {init_scale}, growth_interval: 1000}}}}"
    )
    return ("~trainer.precision", f"+trainer.plugins={plugin}", "trainer.gradient_clip_val=1.0", "balancer=gradnorm")


def saved(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_scale_changes_nothing(run: Run, accumulate: int) -> None:
    """Powers of two are exact; what remains is what float16 loses of small gradients, less at the larger scale."""
    overrides = (f"trainer.accumulate_grad_batches={accumulate}", "optimizer=sgd", "optimizer.lr=0.1")
    one, _ = run("one", *scaler(2.0**9), *overrides)
    big, _ = run("big", *scaler(2.0**12), *overrides)
    a, b = saved(one)["state_dict"], saved(big)["state_dict"]
    assert a.keys() == b.keys()
    for name in a:
        if isinstance(a[name], torch.Tensor):
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_an_overflow_skips_the_step_and_leaves_the_balancer_alone(run: Run) -> None:
    run_dir, summary = run("a", *scaler(2.0**127), "trainer.max_epochs=1")
    assert summary["steps"] == 3
    checkpoint = saved(run_dir)
    assert checkpoint["MixedPrecision"]["scale"] == 2.0**124  # every one of the three steps overflowed
    assert checkpoint["state_dict"]["balancer.weights"].tolist() == [1.0, 1.0]
    assert checkpoint["state_dict"]["balancer.initial_losses"].isnan().all()


@pytest.mark.parametrize("balancer", ["equal", "pcgrad", "famo"])
def test_a_step_without_any_label_is_left_out(run: Run, balancer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled = MultiTaskModule.task_losses

    def losses(self: MultiTaskModule, batch: Any, batch_idx: int, index: int) -> Any:
        found, counts = labelled(self, batch, batch_idx, index)
        return found, dict.fromkeys(counts, 0.0) if batch_idx == 1 else counts

    monkeypatch.setattr(MultiTaskModule, "task_losses", losses)
    run_dir, summary = run("a", *scaler(2.0**9), f"balancer={balancer}", "trainer.max_epochs=1")
    assert summary["steps"] == 3
    checkpoint = saved(run_dir)
    assert checkpoint["MixedPrecision"]["scale"] == 2.0**9
    assert {state["step"].item() for state in checkpoint["optimizer_states"][0]["state"].values()} == {2}


def test_float16_is_refused_on_a_cpu(run: Run) -> None:
    with pytest.raises(ValueError, match=r"Say trainer\.precision=bf16-mixed"):
        run("a", "trainer.precision=16-mixed")
