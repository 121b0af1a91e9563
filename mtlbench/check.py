"""Checks a composed config before anything heavy is imported. Hydra has refused unknown keys and groups by then.

Hydra takes any value for a key. Two things are therefore checked here: `check_types` compares with the defaults (where
the YAML has a number, a number must be given), and `check` knows the keys whose values have a range, and the
combinations that make no sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mtlbench.check_balancer import check_balancer
from mtlbench.check_trainer import check_trainer, number_of_devices
from mtlbench.confdir import conf_dir, groups
from mtlbench.data.names import choose, expand, nearest
from mtlbench.data.nodes import check_dataset


class ConfigError(ValueError):
    """The configuration is wrong; the message says where and how to mend it."""


# key -> (type, smallest value, whether null is allowed). A key that a trainer or optimizer lacks is not checked.
NUMBERS: dict[str, tuple[type, float | None, bool]] = {
    "seed": (int, 0, False),
    "data.batch_size": (int, 1, False),
    "data.eval_batch_size": (int, 1, False),
    "data.num_workers": (int, 0, False),
    "data.max_length": (int, 1, True),
    "trainer.max_epochs": (int, -1, True),
    "trainer.min_epochs": (int, 0, True),
    "trainer.max_steps": (int, -1, False),
    "trainer.min_steps": (int, 0, True),
    "trainer.accumulate_grad_batches": (int, 1, False),
    "trainer.gradient_clip_val": (float, 0, True),
    "trainer.check_val_every_n_epoch": (int, 1, True),
    "trainer.log_every_n_steps": (int, 0, True),
    "trainer.limit_train_batches": (float, 0, True),
    "trainer.limit_val_batches": (float, 0, True),
    "trainer.limit_test_batches": (float, 0, True),
    "trainer.num_sanity_val_steps": (int, -1, True),
    "trainer.num_nodes": (int, 1, False),
    "trainer.timeout": (float, 1, False),
    "optimizer.lr": (float, 0, False),
    "optimizer.weight_decay": (float, 0, False),
    "scheduler.warmup": (float, 0, False),
    "head.dropout": (float, 0, False),
    "layer_lr_decay": (float, 0, False),
    "encoder.dropout": (float, 0, True),
    "threads": (int, 1, True),
    "engine.chunk": (int, 1, True),
    "engine.refresh": (int, 1, False),
    "mixing.steps_per_epoch": (int, 1, True),
    "mixing.group_steps": (int, 1, False),
    "mixing.bucket": (int, 1, False),
    "benchmark.steps": (int, 1, False),
    "benchmark.scale": (float, 0, False),
    "benchmark.clip": (float, 0, True),
    "benchmark.epoch": (int, 1, False),
    "benchmark.every": (int, 1, False),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "encoder.attn_implementation": ("sdpa", "eager"),
    "head.pooling": ("first", "mean", "max", "last"),
    "head.activation": ("relu", "tanh", "gelu"),
    "data.overlaps": ("drop", "keep"),
    "loss_scale": ("none", "initial"),
    "engine.heads": ("raw", "weighted"),
    "engine.normalize": ("none", "match_equal"),
    "engine.measure": ("parameters", "last_layer", "features"),
    "engine.products": ("exact", "bfloat16"),
    "engine.route": ("auto", "sequential", "ghost", "batched", "grouped"),
    "selection.mode": ("max", "min"),
    "trainer.gradient_clip_algorithm": ("norm", "value"),
}
# What Trainer takes in several types.
SEVERAL_TYPES = {
    "trainer.devices",
    "trainer.strategy",
    "trainer.deterministic",
    "trainer.precision",
    "trainer.fast_dev_run",
}
NAMES = {int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "a mapping"}


def check(cfg: DictConfig) -> None:
    """Refuses values out of range, unknown tasks, and combinations that are not there yet.

    Raises:
        ConfigError: naming the key, what was expected and what came.
    """
    _resolvable(cfg)
    for key, (kind, smallest, optional) in NUMBERS.items():
        _number(cfg, key, kind=kind, smallest=smallest, optional=optional)
    for key, choices in CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value not in choices:
            raise ConfigError(f"{key}={value}: {nearest(str(value), choices)}")
    if OmegaConf.select(cfg, "benchmark._target_") is not None:
        _runs_itself(cfg)
        return
    _tasks(cfg)
    defaults: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"), resolve=False)
    del defaults["defaults"]
    _complete(cfg, defaults)
    _datasets(cfg)
    _combinations(cfg)


def _complete(node: DictConfig, defaults: Mapping[str, Any], *, above: str = "") -> None:
    """Refuses that a key of conf/train.yaml is deleted (~key), or null where that means nothing."""
    for name, default in defaults.items():
        key = f"{above}{name}"
        if name not in node:
            raise ConfigError(f"no key '{key}' in the config, and a run needs it. Leave ~{key} out.")
        value = node[name]
        if isinstance(default, dict) and isinstance(value, DictConfig):
            _complete(value, default, above=f"{key}.")
        elif value is None and default is not None and key not in NUMBERS and not _interpolates(default):
            expected = NAMES.get(type(default), "text")
            raise ConfigError(f"{key}=null: expected {expected} as in the default, {key}={_show(default)}.")


def _runs_itself(cfg: DictConfig) -> None:
    """Refuses what has no meaning for a benchmark that runs itself: all that is about networks, data and tasks."""
    name = cfg.benchmark.name
    if not str(OmegaConf.select(cfg, "sharing._target_")).endswith(".Hard"):
        raise ConfigError(
            f"benchmark={name}: its tasks share all there is, a point of the plane. Leave out sharing=..., and "
            "balancer=independent with it."
        )
    defaults: Any = OmegaConf.load(conf_dir() / "train.yaml")
    defaults.selection = {"monitor": "reached", "mode": "max"}
    defaults.data.dir = OmegaConf.select(cfg, "data.dir")  # says where, not what
    meant = {"benchmark", "balancer", "optimizer", "sharing", "seed", "method", "resume"}
    for key in {*groups(), *defaults} - {*meant, "defaults"}:
        given, default = (OmegaConf.select(node, key) for node in (cfg, defaults))
        if given not in (default, None):
            raise ConfigError(
                f"benchmark={name} trains no network and reads no data, so that {key}... has no meaning there. It "
                "takes benchmark.*, balancer, optimizer, seed and method."
            )
    for key in ("scale", "clip"):
        if OmegaConf.select(cfg, f"benchmark.{key}") == 0:
            raise ConfigError(f"benchmark.{key}=0: nothing would move. Expected a number above 0.")
    _balancer(cfg, num_tasks=2, engine={})


def check_types(given: Any, defaults: Any, *, key: str = "") -> None:
    """Compares a config with the same choice of groups without overrides of single values.

    null may stand for anything, a whole number for any number; text that interpolates is known only later.

    Args:
        given: the composed config as plain containers, not resolved.
        defaults: the same without value overrides.
        key: where in the config the two stand.

    Raises:
        ConfigError: a value is of another type than its default.
    """
    if given is None or defaults is None or key in SEVERAL_TYPES or _interpolates(given) or _interpolates(defaults):
        return
    if isinstance(given, dict) and isinstance(defaults, dict):
        for name in given.keys() & defaults.keys():
            check_types(given[name], defaults[name], key=f"{key}.{name}" if key else str(name))
        return
    expected = float if type(defaults) is int and type(given) is float else type(defaults)
    # Text takes numbers too: 16 and "16-mixed" are both a precision.
    fits = isinstance(given, (str, int, float)) if expected is str else isinstance(given, _accepted(expected))
    if not fits or (expected in (int, float) and isinstance(given, bool)):
        raise ConfigError(
            f"{key}={_show(given)}: expected {NAMES.get(expected, 'text')} as in the default, {key}={_show(defaults)}."
        )


def _accepted(expected: type) -> tuple[type, ...]:
    return (int, float) if expected is float else (expected,)


def _interpolates(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _show(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _number(cfg: DictConfig, key: str, *, kind: type, smallest: float | None, optional: bool) -> None:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not isinstance(node, DictConfig) or name not in node:
        return
    value = OmegaConf.select(cfg, key)
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise ConfigError(f"{key}={'null' if value is None else _show(value)}: expected {NAMES[kind]}.")
    if smallest is not None and not value >= smallest:
        raise ConfigError(f"{key}={value}: expected {NAMES[kind]} of at least {smallest}.")


def _tasks(cfg: DictConfig) -> None:
    """The names of tasks, where they are chosen and where they are referred to."""
    declared = OmegaConf.select(cfg, "benchmark.tasks")
    if not isinstance(declared, DictConfig):
        raise ConfigError("No benchmark is chosen: give benchmark=NAME. `mtlbench list benchmarks` shows them.")
    tasks: Mapping[str, Any] = OmegaConf.to_container(declared, resolve=True)  # type: ignore[assignment]
    chosen = OmegaConf.select(cfg, "tasks")
    if isinstance(chosen, str):
        raise ConfigError(f"tasks={chosen}: expected a list: tasks=[{chosen}]")
    try:
        names = choose(tasks, None if chosen is None else [str(name) for name in chosen])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    head_lr = OmegaConf.select(cfg, "head_lr")
    if isinstance(head_lr, str):
        raise ConfigError(
            f"head_lr={head_lr}: expected a number, or numbers by task: head_lr={{{next(iter(names))}: 0.01}}"
        )
    for name in head_lr if isinstance(head_lr, DictConfig) else ():
        if name not in names:
            raise ConfigError(f"head_lr names the task '{name!s}'. {nearest(str(name), names)}")
    monitor = str(OmegaConf.select(cfg, "selection.monitor", default="val/score"))
    known = [
        f"val/{name}" for name in ("score", "loss", *names, *OmegaConf.select(cfg, "benchmark.datasets", default=()))
    ]
    if "/".join(monitor.split("/")[:2]) not in known:
        raise ConfigError(f"selection.monitor={monitor}. {nearest(monitor, known)} A metric follows the task's name.")


def _datasets(cfg: DictConfig) -> None:
    """Their sources and inputs, and that each task's dataset is there."""
    declared = OmegaConf.select(cfg, "benchmark.datasets")
    if not isinstance(declared, DictConfig):
        raise ConfigError("benchmark.datasets: expected a mapping of names to datasets.")
    tasks: Mapping[str, Any] = OmegaConf.to_container(cfg.benchmark.tasks, resolve=True)  # type: ignore[assignment]
    names = [str(name) for name in declared]
    try:
        for name, node in zip(names, declared.values(), strict=True):
            check_dataset(name, OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for task in expand(tasks).values():
        if task.dataset not in names:
            raise ConfigError(f"Task '{task.name}': no dataset '{task.dataset}'. {nearest(task.dataset, names)}")


def _combinations(cfg: DictConfig) -> None:
    try:
        check_trainer(cfg)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    sharing, balancer = (str(OmegaConf.select(cfg, f"{group}._target_")) for group in ("sharing", "balancer"))
    if sharing.endswith(".Independent") and not balancer.endswith(".Equal"):
        raise ConfigError(
            f"sharing=independent with {balancer}: tasks that share nothing have nothing to balance. "
            "Use balancer=independent, the single-task baselines, or another sharing."
        )
    if OmegaConf.select(cfg, "engine.measure") == "features":
        _features(cfg, sharing)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    trainer = plain["trainer"]
    accumulated = trainer.get("accumulate_grad_batches", 1)  # a Trainer's node may leave what it has to Lightning
    if plain["loss_scale"] == "initial" and accumulated > 1:
        raise ConfigError(
            f"loss_scale=initial with trainer.accumulate_grad_batches={accumulated}: the first losses would be those "
            "of the first batch alone, and such a run no longer equal to one of larger batches. Leave one of the two "
            "out."
        )
    _balancer(
        cfg,
        num_tasks=len(choose(plain["benchmark"]["tasks"], plain["tasks"])),
        engine=plain["engine"],
        accumulated=accumulated,
        devices=(number_of_devices(trainer["devices"]) or 1) * trainer.get("num_nodes", 1),
    )


def _balancer(cfg: DictConfig, **asked: Any) -> None:
    node: Any = OmegaConf.to_container(cfg.balancer, resolve=True)
    try:
        check_balancer(node, **asked)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _features(cfg: DictConfig, sharing: str) -> None:
    """Whether the chosen tasks read one representation of the same examples."""
    if not sharing.endswith(".Hard"):
        raise ConfigError(f"engine.measure=features with {sharing}: expected sharing=hard, where all heads read one z.")
    tasks: Mapping[str, Any] = OmegaConf.to_container(cfg.benchmark.tasks, resolve=True)  # type: ignore[assignment]
    chosen = OmegaConf.select(cfg, "tasks")
    nodes = choose(tasks, None if chosen is None else [str(name) for name in chosen]).values()
    datasets, columns = {node.dataset for node in nodes}, {node.where[0] for node in nodes if node.where is not None}
    if len(datasets) > 1 or columns:
        apart = f"the datasets {', '.join(sorted(datasets))}" if len(datasets) > 1 else f"split_by {columns.pop()}"
        raise ConfigError(
            f"engine.measure=features: the tasks have examples of their own ({apart}), and features of different "
            "examples have nothing to compare. Use engine.measure=parameters."
        )


def _resolvable(cfg: DictConfig) -> None:
    """Refuses values that must be given and were not, and interpolations that lead nowhere."""
    missing: list[str] = []
    broken: list[str] = []

    def walk(node: DictConfig | ListConfig, path: str) -> None:
        names: list[Any] = list(node) if isinstance(node, DictConfig) else list(range(len(node)))
        for name in names:
            key = f"{path}.{name}" if path else str(name)
            try:
                value = node[name]
            except MissingMandatoryValue:
                missing.append(key)
            except OmegaConfBaseException as error:
                # Hydra's own node is there only once the job runs.
                if "HydraConfig was not set" not in str(error):
                    broken.append(f"{key} cannot be resolved: {str(error).splitlines()[0]}")
            else:
                if isinstance(value, DictConfig | ListConfig):
                    walk(value, key)

    walk(cfg, "")
    if missing:  # first, for others may refer to it
        raise ConfigError(f"no value for {', '.join(missing)}: give {missing[0]}=...")
    if broken:
        raise ConfigError("\n".join(broken))
