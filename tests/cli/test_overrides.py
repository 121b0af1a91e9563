"""What the command line makes of a configuration, and how it speaks of what is wrong with one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import hydra
import pytest
from lightning.fabric.connector import _PRECISION_INPUT
from lightning.pytorch.accelerators import AcceleratorRegistry
from omegaconf import OmegaConf

from mtlbench.check import CHOICES, ConfigError, check, check_types
from mtlbench.check_trainer import ACCELERATORS, PRECISIONS
from mtlbench.confdir import conf_dir, entries
from mtlbench.gradients.routes import ROUTES
from tests.cli.processes import Cli


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("balancer=pcgrd", "no balancer 'pcgrd'. Did you mean pcgrad"),
        ("benchmark=multidigit", "no benchmark 'multidigit'. Did you mean multidigits"),
        ("experiment=dmo", "no experiment 'dmo'. Did you mean demo?"),
        ("sharing=sft", "no sharing 'sft'. There is:"),
        ("hydra/launcher=basci", "no hydra/launcher 'basci'. Did you mean basic?"),
        ("balncer=pcgrad", "no key 'balncer' in the config. Did you mean balancer?"),
        ("experimnt=demo", "no key 'experimnt' in the config. Did you mean experiment?"),
        ("trainer.max_epoch=3", "no key 'trainer.max_epoch' in the config. Did you mean trainer.max_epochs"),
        ("max_epochs=3", "no key 'max_epochs' in the config. Did you mean trainer.max_epochs"),
        ("engine.zzz=3", "no key 'engine.zzz' in the config. engine holds: heads, normalize, measure"),
        ("qqqqqqq=3", "no key 'qqqqqqq' in the config. `--cfg job` shows the keys."),
        ("hydra.run.dirr=x", "Did you mean hydra.run.dir?"),
        ("seed", "cannot read the override 'seed'"),
        ("seed={", "cannot read the override 'seed={'"),
        ("seed=0,1", "add --multirun"),
        ("tasks=[left,rigt]", "no task 'rigt'. Did you mean right?"),
        ("tasks=[left,left]", "each once"),
        ("tasks=[]", "at least one"),
        ("tasks=left", "expected a list: tasks=[left]"),
        ("head_lr={rigth: 0.1}", "head_lr names the task 'rigth'. Did you mean right?"),
        ("head_lr=fast", "expected a number, or numbers by task"),
        ("selection.monitor=val/scor", "selection.monitor=val/scor. Did you mean val/score"),
        ("selection.monitor=val/lft/accuracy", "There is: val/score, val/loss, val/left, val/right"),
        ("seed=x", "seed=x: expected a whole number"),
        ("seed=1.5", "seed=1.5: expected a whole number"),
        ("seed=-1", "seed=-1: expected a whole number of at least 0"),
        ("trainer.max_epochs=abc", "trainer.max_epochs=abc: expected a whole number"),
        ("trainer.enable_progress_bar=3", "expected true or false as in the default"),
        ("data.batch_size=0", "data.batch_size=0: expected a whole number of at least 1"),
        ("data.batch_size=true", "data.batch_size=true: expected a whole number"),
        ("data.batch_size=null", "data.batch_size=null: expected a whole number"),
        ("optimizer.lr=fast", "optimizer.lr=fast: expected a number"),
        ("engine.heads=wieghted", "engine.heads=wieghted: Did you mean weighted?"),
        ("trainer.devices=two", "trainer.devices=two: expected a number, a list such as [0,2], or auto for all"),
        ("trainer.devices=[]", "trainer.devices=[]: expected a number, a list"),
        ("trainer.devices=0", "trainer.devices=0: expected at least one device, each once"),
        ("trainer.devices=[1,1]", "trainer.devices=[1, 1]: expected at least one device, each once"),
        ("trainer.num_nodes=0", "trainer.num_nodes=0: expected a whole number of at least 1"),
        ("trainer.timeout=0", "trainer.timeout=0: expected a number of at least 1"),
        ("trainer.strategy=deepspeed", "expected auto, ddp or fsdp, which divides the shared encoder"),
        ("trainer.strategy=fsdp", "divides the parameters over several devices, and trainer.devices is 1"),
        (
            "trainer.strategy={_target_: lightning.pytorch.strategies.ModelParallelStrategy}",
            "expected auto, ddp or fsdp, which divides the shared encoder over the devices",
        ),
        ("trainer.strategy=ddp_spawn", "mtlbench starts a process for each device by itself"),
        ("+trainer.sync_batchnorm=true", "running statistics are averaged over the devices at every step"),
        ("+trainer.use_distributed_sampler=true", "the loader gives each device its part"),
        ("trainer.check_val_every_n_epoch=11", "with trainer.max_epochs=10: no epoch would be validated"),
        ("+trainer.limit_val_batches=0", "the epoch that is tested is selected by validation"),
        ("trainer.accelerator=gpus", "trainer.accelerator=gpus: Did you mean gpu"),
        ("trainer.precision=fp8", "trainer.precision=fp8: There is: 32-true"),
        ("+trainer.limit_val_batch=1", "no argument 'limit_val_batch' of Lightning's Trainer. Did you mean limit_val_"),
        ("+trainer.barebones=true", "it leaves out checkpoints and metrics, by which the tested epoch is selected"),
        ("+trainer.callbacks=[]", "say +callbacks.NAME={_target_: ...}"),
        ("+trainer.overfit_batches=2", "it draws past the mixing, which says what a step draws"),
        ("trainer.max_epochs=0", "Train at least one"),
        ("trainer.max_steps=0", "nothing would be trained"),
        ("trainer.max_epochs=null", "null without trainer.max_steps: nothing says when the training ends"),
        ("~data.batch_size", "no key 'data.batch_size' in the config, and a run needs it. Leave ~data.batch_size out."),
        ("~engine", "no key 'engine' in the config"),
        ("engine=null", "engine=null: expected a mapping"),
        ("engine.heads=null", "engine.heads=null: expected text as in the default, engine.heads=raw"),
        ("head.hidden=null", "head.hidden=null: expected a list"),
        ("encoder=pretrained", "no value for encoder.model: give encoder.model=..."),
        ("data.dir=${oc.env:MTLBENCH_NOWHERE}", "data.dir cannot be resolved"),
        ("sharing=independent", "have nothing to balance"),
    ],
)
def test_a_wrong_override_is_named_with_the_nearest_right_one(
    cli: Cli,
    trained: list[dict[str, Any]],
    override: str,
    expected: str,
    tmp_path: Path,
) -> None:
    more = ["balancer=pcgrad"] if override == "sharing=independent" else []
    status, out, err = cli("train", override, *more)
    assert status == 2
    assert expected in err
    assert "Traceback" not in out + err
    assert not trained
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("trainer.accelerator=cpu trainer.devices=[0,1]", "trainer.devices=[0, 1] with trainer.accelerator=cpu"),
        (
            "trainer.devices=2 trainer.strategy=fsdp trainer.precision=16-mixed",
            "trainer.strategy=fsdp with trainer.precision=16-mixed: torch's loss scaler takes whole gradients",
        ),
        (
            "trainer.devices=2 trainer.strategy=fsdp balancer=independent sharing=independent callbacks=independent",
            "trainer.strategy=fsdp divides the encoder that tasks share, and with sharing=independent they share none",
        ),
        ("balancer=krum", "Krum balances at least 3 tasks, and here there are 2"),
        ("balancer=crmogm balancer.weighting._target_=mtlbench.balancing.krum.Krum", "Krum balances at least 3 tasks"),
        ("balancer=graddrop engine.measure=features", "GradDrop is an Aggregator, and engine.measure=features is for"),
        ("balancer=famo engine.measure=last_layer", "FAMO is a Scalarizer, and engine.measure=last_layer is for"),
        ("balancer=equal engine.route=ghost", "Equal is a Scalarizer, and engine.route=ghost is for"),
        ("balancer=equal engine.refresh=3", "Leave it out, or say engine.refresh=1."),
        ("balancer=graddrop engine.heads=weighted", "GradDrop is an Aggregator, which has no task weights"),
        (
            "balancer=pcgrad engine.route=batched trainer.accumulate_grad_batches=2",
            "engine.route=batched with trainer.accumulate_grad_batches=2: it is for steps of one batch",
        ),
        ("balancer=pcgrad engine.route=ghost trainer.devices=2", "engine.route=ghost on 2 devices, which go the"),
        ("balancer=pcgrad engine.route=ghost trainer.devices=[0,2]", "engine.route=ghost on 2 devices"),
        ("trainer.max_steps=9 trainer.check_val_every_n_epoch=2", "the last steps may not be validated"),
        ("balancer=equal engine.products=bfloat16", "Leave it out, or say engine.products=exact."),
        ("balancer=mgda engine.products=bfloat16 trainer.devices=2", "engine.products=bfloat16 on 2 devices"),
        ("balancer=pcgrad engine.route=ghost trainer.num_nodes=3", "engine.route=ghost on 3 devices"),
        (
            "loss_scale=initial trainer.accumulate_grad_batches=4",
            "loss_scale=initial with trainer.accumulate_grad_batches=4: the first losses would be those of the first",
        ),
    ],
)
def test_what_does_not_go_together(overrides: str, expected: str) -> None:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("train", overrides.split())
    with pytest.raises(ConfigError, match=re.escape(expected)):
        check(cfg)


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--help"], ["--info", "defaults"], ["-m"]], ids=" ".join)
def test_every_way_in_explains_errors(cli: Cli, flags: list[str]) -> None:
    status, out, err = cli("train", *flags, "balancer=pcgrd")
    assert (status, "Traceback" in out + err) == (2, False)
    assert "Did you mean pcgrad" in err


@pytest.mark.parametrize("flags", [[], ["--cfg", "job"], ["--help"], ["-m"]], ids=" ".join)
def test_malformed_yaml_is_shown_with_its_line(cli: Cli, tmp_path: Path, flags: list[str]) -> None:
    path = tmp_path / "mine" / "balancer" / "broken.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# mine\nalpha: 1\n beta: [2\n")
    status, out, err = cli("train", "--config-dir", "mine", *flags, "balancer=broken")
    assert (status, "Traceback" in out + err) == (2, False)
    assert f"malformed YAML in {path}, line 3, column" in err
    assert "\n   beta: [2\n" in err


def test_traceback_on_demand(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(hydra.errors.MissingConfigException):
        cli("train", "balancer=pcgrd")


def test_types_that_may_change(cli: Cli, trained: list[dict[str, Any]]) -> None:
    given = [
        "head_lr={left: 0.1}",
        "selection.monitor=val/left/accuracy",
        "optimizer.lr=1",
        "trainer.devices=[0]",
        "trainer.precision=16",
        "trainer.gradient_clip_val=0.5",
        "trainer.check_val_every_n_epoch=10",
    ]
    status, _, err = cli("train", *given, "+mine.key=text", "+trainer.profiler=simple")
    assert status == 0, err
    assert trained[0]["cfg"].mine.key == "text"


def test_types_are_compared_with_the_defaults() -> None:
    defaults = {"rate": 1, "name": "a", "deep": {"on": True, "sizes": [1], "later": "${x}", "free": None}}
    for fits in (
        {"rate": 0.5},
        {"rate": None},
        {"name": 16},
        {"deep": None},
        {"deep": {"sizes": [], "later": 3, "free": [1]}},
        {"rate": "${y}", "new": 1},
    ):
        check_types(fits, defaults)
    for given, key in (
        ({"rate": "a"}, "rate=a: expected a whole number"),
        ({"rate": True}, "rate=true"),
        ({"name": [1]}, "name="),
        ({"deep": 3}, "deep=3: expected a mapping"),
        ({"deep": {"on": 1}}, "deep.on=1: expected true or false"),
        ({"deep": {"sizes": 1}}, "deep.sizes=1: expected a list"),
    ):
        with pytest.raises(ConfigError, match=key):
            check_types(given, defaults)


def test_check_needs_a_benchmark() -> None:
    with pytest.raises(ConfigError, match="benchmark=NAME"):
        check(OmegaConf.create({"seed": 0}))


def test_configs_of_ones_own(cli: Cli, trained: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "balancer"
    folder.mkdir(parents=True)
    (folder / "my_method.yaml").write_text("# Mine.\n_target_: my.Method\nalpha: 0.5\n")
    for where in (["hydra.searchpath=[file://mine]"], ["--config-dir", "mine"]):
        assert cli("train", *where, "balancer=my_method", "balancer.alpha=1")[0] == 0
        assert trained[-1]["method"] == "my_method"
        assert trained[-1]["cfg"].balancer.alpha == 1
        status, _, err = cli("train", *where, "balancer=my_method", "balancer.alpha=a")
        assert (status, "balancer.alpha=a: expected a number" in err) == (2, True)


def test_a_trainer_of_one_s_own_has_arguments_of_its_own() -> None:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        check(hydra.compose("train", ["trainer._target_=my.make_trainer", "+trainer.mine=1"]))


def test_compose_from_a_notebook() -> None:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("train", ["balancer=independent", "benchmark=snips", "trainer.max_epochs=2"])
    assert cfg.sharing._target_.endswith(".Independent")
    assert (cfg.benchmark.name, cfg.trainer.max_epochs) == ("snips", 2)
    check(cfg)


@pytest.mark.parametrize(
    "override", [f"{group}={entry.name}" for group in ("benchmark", "balancer") for entry in entries(group)]
)
def test_every_benchmark_and_balancer_composes(override: str) -> None:
    several = ["benchmark=multidigits5"] if override.startswith("balancer") else []  # tasks, as some balancers need
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        check(hydra.compose("train", [override, *several]))


def test_the_trainer_s_values_are_lightning_s() -> None:
    given = [get_args(literal) for literal in get_args(_PRECISION_INPUT)]
    assert {str(value) for values in given for value in values} == set(PRECISIONS)
    for accelerator in {*ACCELERATORS} - {"auto", "gpu"}:
        assert accelerator in AcceleratorRegistry.available_accelerators()


def test_configurations_name_the_engine_s_routes() -> None:
    assert CHOICES["engine.route"] == ROUTES
