"""Following balancers through the plane: the engine's steps, the record, what is refused, who reaches the front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate

from mtlbench.balancing.base import Balancer, TaskSpec
from mtlbench.check import ConfigError, check
from mtlbench.confdir import conf_dir
from mtlbench.gradients import GradientEngine
from mtlbench.launch.errors import explain
from mtlbench.results.records import read_run
from mtlbench.toy.problem import on_front
from mtlbench.train import train
from tests.toy.conftest import Follow, toy
from tests.toy.test_problem import STARTS, official

NAMES = sorted(path.stem for path in (conf_dir() / "balancer").glob("*.yaml") if path.stem != "independent")
# What these need, and the problem has not.
UNDEFINED = dict.fromkeys(("db_mtl", "gls", "go4align", "gradnorm", "scale_invariant"), "positive|at least 0")
UNDEFINED |= dict.fromkeys(("krum", "trimmed_mean"), "at least 3 tasks")
SPECS = [TaskSpec("f1", "regression"), TaskSpec("f2", "regression")]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNDEFINED])
def test_steps_are_those_of_the_engine(follow: Follow, name: str) -> None:
    """The engine, with torch's autograd and a loop for one start alone, takes the path that is one of five."""
    cfg = toy(f"balancer={name}")
    cfg.benchmark.update(steps=30, epoch=10, every=1)
    _, paths = follow(cfg)
    point = torch.nn.Parameter(torch.tensor(STARTS["S5"], dtype=torch.float64))
    balancer: Balancer = instantiate(cfg.balancer, _partial_=True, _convert_="all")(num_tasks=2, seed=0, tasks=SPECS)
    engine = GradientEngine([point], balancer, tasks=["f1", "f2"])
    optimizer = torch.optim.Adam([point, *balancer.parameters()], lr=1e-3)
    taken, total = [STARTS["S5"]], torch.zeros(2, dtype=torch.float64)
    for step in range(1, 31):
        batches = [dict(zip(("f1", "f2"), official(point, 0.1), strict=True)) for _ in range(balancer.num_batches)]
        record = engine.backward(batches if len(batches) > 1 else batches[0])
        assert record is not None
        if cfg.benchmark.clip is not None:
            torch.nn.utils.clip_grad_norm_([point], cfg.benchmark.clip)
        optimizer.step()
        if balancer.needs_after_step:
            balancer.after_step(record.losses, official(point.detach(), 0.1))
        total += record.losses
        if step % 10 == 0:
            balancer.end_epoch(total / 10)
            total = torch.zeros(2, dtype=torch.float64)
        taken.append(tuple(point.tolist()))
    found = paths[paths["start"] == "S5"]
    np.testing.assert_array_equal(found["step"], range(31))
    # clip_grad_norm_ divides by the length plus 1e-6.
    np.testing.assert_allclose(found[["x1", "x2"]].to_numpy(), np.array(taken), rtol=0, atol=1e-7)


def test_the_record_and_the_trajectories(tmp_path: Path) -> None:
    cfg = toy("balancer=mgda", "benchmark.steps=25", "benchmark.every=10", "+benchmark.starts.near=[2,-8.3]")
    value = train(cfg, run_dir=tmp_path, overrides=["balancer=mgda"])
    assert value == pytest.approx(1 / 6)
    found = read_run(tmp_path)
    assert (found.status, found.toy, found.method, found.tasks) == ("finished", True, "mgda", ())
    told = found.summary["starts"]
    assert list(told) == [*STARTS, "near"]
    assert [start for start, one in told.items() if one["reached"]] == ["near"]
    assert (told["near"]["first_step"], told["S1"]["first_step"]) == (0, None)
    paths = pd.read_parquet(tmp_path / "trajectories.parquet")
    assert list(paths) == ["start", "step", "x1", "x2", "f1", "f2"]
    assert paths[paths["start"] == "S1"]["step"].tolist() == [0, 10, 20, 25]
    np.testing.assert_array_equal(paths[["x1", "x2"]].to_numpy()[[0, 3]], [told["S1"]["from"], told["S1"]["to"]])
    before = (tmp_path / "summary.json").stat().st_mtime_ns
    assert train(cfg, run_dir=tmp_path) == value  # finished already: not run again
    assert (tmp_path / "summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["famo", "graddrop", "uncertainty"])
def test_the_same_seed_gives_the_same_path(follow: Follow, name: str) -> None:
    cfg = toy(f"balancer={name}")
    cfg.benchmark.steps = 50
    (_, first), (_, again) = follow(cfg), follow(cfg)
    pd.testing.assert_frame_equal(first, again, check_exact=True)


@pytest.mark.parametrize("name", UNDEFINED)
def test_a_balancer_that_is_not_defined_here_fails_with_the_reason(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=UNDEFINED[name]) as caught:
        train(toy(f"balancer={name}"), run_dir=tmp_path)
    found = read_run(tmp_path)
    assert found.status == "failed"
    assert str(caught.value) in found.reason
    assert "3 tasks" in found.reason or "Step 1, from S" in found.reason


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_direction_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="Step 2, from S1: the direction is not finite"):
        train(toy("optimizer.lr=1e308", "benchmark.steps=5"), run_dir=tmp_path)


def test_one_thread_whatever_torch_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a core is busy, two threads make a step of ten numbers thirty times as long."""
    seen = []

    def watched(directions: object, clip: object) -> object:
        seen.append(torch.get_num_threads())
        return directions

    monkeypatch.setattr("mtlbench.toy.run._clipped", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(toy("benchmark.steps=3"), run_dir=tmp_path / "done")
        assert (seen, torch.get_num_threads()) == ([1, 1, 1], 2)
        with pytest.raises(FloatingPointError):
            train(toy("optimizer=sgd", "optimizer.lr=1e300", "benchmark.steps=9"), run_dir=tmp_path / "failed")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_clipping_shortens_each_start_s_direction(follow: Follow) -> None:
    """With plain descent a step is as long as the direction."""
    lengths = {}
    for clip in (1e6, 0.25):
        cfg = toy("optimizer=sgd", "optimizer.lr=1", "optimizer.momentum=0", f"benchmark.clip={clip}")
        cfg.benchmark.steps = 1
        _, paths = follow(cfg)
        lengths[clip] = np.linalg.norm(paths.groupby("start")[["x1", "x2"]].diff().dropna().to_numpy(), axis=1)
    assert 0 < (lengths[1e6] > 0.25).sum() < 5  # of some starts, not of all
    np.testing.assert_allclose(lengths[0.25], np.minimum(lengths[1e6], 0.25), rtol=1e-12)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("balancer=independent", "its tasks share all there is"),
        ("sharing=shared_private", "its tasks share all there is"),
        ("encoder=lenet", "encoder... has no meaning there"),
        ("trainer=default", "trainer... has no meaning there"),
        ("mixing=joint", "mixing... has no meaning there"),
        ("logger=wandb", "logger... has no meaning there"),
        ("tasks=[f1]", "tasks... has no meaning there"),
        ("data.batch_size=8", "data... has no meaning there"),
        ("engine.measure=last_layer", "engine... has no meaning there"),
        ("loss_scale=initial", "loss_scale... has no meaning there"),
        ("threads=2", "threads... has no meaning there"),
        ("selection.monitor=val/score", "selection... has no meaning there"),
        ("benchmark.steps=0", "a whole number of at least 1"),
        ("benchmark.clip=-1", "a number of at least 0"),
        ("benchmark.clip=0", "nothing would move"),
        ("benchmark.scale=0", "nothing would move"),
        ("balancer=krum", "Krum balances at least 3 tasks, and here there are 2"),
    ],
)
def test_what_has_no_meaning_is_refused(override: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check(toy(override))


@pytest.mark.parametrize("override", ["sharing=hard", "data.dir=somewhere", "optimizer=sgd", "seed=3", "resume=false"])
def test_what_says_where_or_how_is_taken(override: str) -> None:
    check(toy(override))


def test_a_key_of_a_group_that_is_not_there() -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        toy("trainer.max_epochs=3")
    assert explain(caught.value) == "no key 'trainer' in the config: with this benchmark trainer has no meaning."


def test_starts_that_are_no_points(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected names with two numbers each"):
        train(toy("benchmark.starts.S1=[1,2,3]"), run_dir=tmp_path)


def test_what_the_benchmark_sets_for_a_balancer_can_be_overridden() -> None:
    cfg = toy("balancer=famo")
    assert (cfg.balancer.gamma, dict(cfg.balancer.min_losses), cfg.benchmark.clip) == (0, {"f1": -2.1, "f2": -21.0}, 1)
    cfg = toy("balancer=famo", "balancer.gamma=0.5", "benchmark.clip=null")
    assert (cfg.balancer.gamma, cfg.benchmark.clip) == (0.5, None)
    assert toy("balancer=equal").benchmark.clip is None


def ends(follow: Follow, name: str, *, starts: dict[str, tuple[float, float]], steps: int) -> np.ndarray[Any, Any]:
    """(S, 2) where the paths end, with the options that the benchmark has for the balancer."""
    cfg = toy(f"balancer={name}")
    cfg.benchmark.update(starts=starts, steps=steps)
    return np.array([told["to"] for told in follow(cfg)[0].values()])


EIGHT = ("equal", "mgda", "pcgrad", "cagrad", "nash_mtl", "imtl_g", "aligned_mtl", "famo")


@pytest.mark.parametrize("name", EIGHT)
def test_the_front_is_reached_from_nearby(follow: Follow, name: str) -> None:
    assert on_front(ends(follow, name, starts={"near": (2.0, -7.5)}, steps=1000)).all()


@pytest.mark.thorough
@pytest.mark.parametrize("name", EIGHT)
def test_who_reaches_the_front_from_where(follow: Follow, name: str) -> None:
    """The statements of the reference (published.md, section 3), in its 50,000 steps.

    The paths of equal from S1 and S3 go by a logarithm's singularity, where rounding decides: where they end is not
    looked at, but that S3 does not arrive, whatever the rounding.
    """
    found = ends(follow, name, starts=STARTS, steps=50_000)
    reached = dict(zip(STARTS, on_front(found).tolist(), strict=True))
    if name == "equal":
        assert not reached["S3"]
        assert reached["S2"] and reached["S4"] and reached["S5"]
    else:
        assert all(reached.values()), found
    if name == "cagrad":
        np.testing.assert_allclose(found[:, 0], -5.73, atol=0.05)
    if name == "nash_mtl":
        np.testing.assert_allclose(found[:, 0], [-2.93, 0.0, 2.94, -3.29, 4.90], atol=0.05)
    if name == "famo":
        np.testing.assert_allclose(found[:, 0], [-0.49, 0.08, 0.34, -0.95, 1.76], atol=0.05)
