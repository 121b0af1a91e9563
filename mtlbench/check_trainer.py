"""Whether the Trainer's settings are ones that Lightning and the engine take."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from mtlbench import source
from mtlbench.data.names import nearest

OWN = {"_target_", "timeout"}  # what the Trainer's node has beside Lightning's arguments
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = (
    "32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "transformer-engine",
    "transformer-engine-float16", "16", "32", "64", "bf16",
)  # fmt: skip
REFUSED = {
    "barebones": "it leaves out checkpoints and metrics, by which the tested epoch is selected",
    "callbacks": "say +callbacks.NAME={_target_: ...}",
    "default_root_dir": "say hydra.run.dir=FOLDER",
    "logger": "say logger=NAME",
    "overfit_batches": "it draws past the mixing, which says what a step draws; say trainer.limit_train_batches",
    "use_distributed_sampler": "the loader gives each device its part",
}


def check_trainer(cfg: DictConfig) -> None:
    """Refuses what would fail only once torch and Lightning are imported, or once the run has trained.

    Raises:
        ValueError: naming the key, what was expected and what came.
    """
    _arguments(cfg)
    _devices(cfg)
    _validation(cfg)


def _arguments(cfg: DictConfig) -> None:
    """Their names, unless the Trainer is made by other code, and the values of those that are one of a few words."""
    ours = OmegaConf.select(cfg, "trainer._target_") == "mtlbench.lit.devices.make_trainer"
    trainer = next(source.classes("lightning.pytorch.trainer.trainer.Trainer"), None)
    known = [] if trainer is None else [*source.arguments(trainer), *OWN]
    for name in map(str, cfg.trainer):
        if ours and known and name not in known:
            raise ValueError(f"no argument '{name}' of Lightning's Trainer. {nearest(name, known)}")
        if name in REFUSED and cfg.trainer[name] is not None:
            raise ValueError(f"trainer.{name}: {REFUSED[name]}. Leave it out.")
    for name, choices in (("accelerator", ACCELERATORS), ("precision", PRECISIONS)):
        value = OmegaConf.select(cfg, f"trainer.{name}")
        if isinstance(value, str | int) and str(value) not in choices:
            raise ValueError(f"trainer.{name}={value}: {nearest(str(value), choices)}")


def _devices(cfg: DictConfig) -> None:
    """Which devices there are is known later; here, whether a choice of some is one that the engine can work on."""
    devices = OmegaConf.select(cfg, "trainer.devices")
    some = list(devices) if isinstance(devices, ListConfig) else str(devices).strip(",").split(",")
    all_of_them = devices in ("auto", -1, "-1")
    if not all_of_them and not (some and all(str(index).strip().isdigit() for index in some)):
        raise ValueError(f"trainer.devices={devices}: expected a number, a list such as [0,2], or auto for all.")
    if len(set(map(str, some))) < len(some) or devices in (0, "0"):
        raise ValueError(f"trainer.devices={devices}: expected at least one device, each once.")
    cpu = OmegaConf.select(cfg, "trainer.accelerator") == "cpu"
    if cpu and (len(some) > 1 or isinstance(devices, ListConfig) or str(devices) == "-1"):
        raise ValueError(f"trainer.devices={devices} with trainer.accelerator=cpu: expected a number of processes.")
    number = number_of_devices(some if isinstance(devices, ListConfig) else devices)
    _strategy(cfg, alone=number == 1 and OmegaConf.select(cfg, "trainer.num_nodes") in (None, 1))
    if OmegaConf.select(cfg, "trainer.sync_batchnorm"):
        raise ValueError(
            "trainer.sync_batchnorm=true: it exchanges numbers within each task's backward, and a device without "
            "labels of a task has none. Leave it out: running statistics are averaged over the devices at every step."
        )


def _strategy(cfg: DictConfig, *, alone: bool) -> None:
    """Whether it is one by which the engine works; `alone`: on one device."""
    strategy = OmegaConf.select(cfg, "trainer.strategy")
    if strategy == "fsdp":
        if alone:
            raise ValueError(
                "trainer.strategy=fsdp divides the parameters over several devices, and trainer.devices is 1: say how "
                "many, or trainer.strategy=auto."
            )
        if OmegaConf.select(cfg, "sharing._target_", default="").endswith(".Independent"):
            raise ValueError(
                "trainer.strategy=fsdp divides the encoder that tasks share, and with sharing=independent they share "
                "none: say trainer.strategy=ddp."
            )
        if str(OmegaConf.select(cfg, "trainer.precision")) in ("16-mixed", "16"):
            raise ValueError(
                "trainer.strategy=fsdp with trainer.precision=16-mixed: torch's loss scaler takes whole gradients, or "
                "parts of all. Say trainer.precision=bf16-mixed, or trainer.strategy=ddp."
            )
    elif strategy not in ("auto", "ddp"):
        raise ValueError(
            f"trainer.strategy={strategy}: expected auto, ddp or fsdp, which divides the shared encoder over the "
            "devices. mtlbench starts a process for each device by itself, and the engine exchanges gradients, so "
            "that what other strategies are for does not come up."
        )


def _validation(cfg: DictConfig) -> None:
    """That there is one, for it selects the epoch that is tested, and that the training ends."""
    limit, every, epochs, floor, steps, trial = (
        OmegaConf.select(cfg, f"trainer.{name}")
        for name in (
            "limit_val_batches", "check_val_every_n_epoch", "max_epochs", "min_epochs", "max_steps", "fast_dev_run",
        )
    )  # fmt: skip
    if trial:  # which sets all of these itself
        return
    if limit == 0:
        raise ValueError(
            "trainer.limit_val_batches=0: the epoch that is tested is selected by validation. Leave it out."
        )
    if steps == 0:
        raise ValueError("trainer.max_steps=0: nothing would be trained. Say how many steps, or leave it out.")
    if epochs is None and steps in (None, -1):
        raise ValueError(
            "trainer.max_epochs=null without trainer.max_steps: nothing says when the training ends. Give one of them; "
            "trainer.max_epochs=-1 trains until callbacks=early_stopping, or Ctrl-C, ends it."
        )
    if floor and steps not in (None, -1):
        raise ValueError(
            f"trainer.min_epochs={floor} with trainer.max_steps={steps}: an epoch's steps are known only once the data "
            "are read. Say trainer.min_steps, or leave one of the two out."
        )
    if every is not None and every > 1 and steps not in (None, -1):
        raise ValueError(
            f"trainer.check_val_every_n_epoch={every} with trainer.max_steps={steps}: the last steps may not be "
            "validated, so not selected. Leave one of the two out."
        )
    if epochs == 0:
        raise ValueError("trainer.max_epochs=0: the epoch that is tested is one that was trained. Train at least one.")
    if epochs is not None and every is not None and 0 < epochs < every:
        raise ValueError(
            f"trainer.check_val_every_n_epoch={every} with trainer.max_epochs={epochs}: no epoch would be validated, "
            f"so none selected. Say at most {epochs}."
        )


def number_of_devices(devices: Any) -> int | None:
    """On one machine, as Lightning counts a number or a list of indices; None for all that there are (auto, -1)."""
    if isinstance(devices, str) and "," in devices:
        devices = [index for index in devices.split(",") if index.strip()]
    if isinstance(devices, list):
        return len(devices)
    return None if devices in ("auto", "-1", -1) else int(devices)
