"""FSDP2 under Lightning: each rank keeps a part of the shared encoder and of its optimizer state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mtlbench.gradients.shards import part
from mtlbench.lit.ddp import EngineDDP
from mtlbench.models.encoders.base import Encoder
from mtlbench.models.multitask import MultiTaskModel


class EngineFSDP(EngineDDP):
    """The shared encoder's parameters are whole within a step, and beyond it each rank has its part of them.

    So each rank holds its part of the optimizer's state; heads and private encoders it holds whole. Checkpoints are
    whole, those that `EngineDDP` writes.
    """

    def configure_ddp(self) -> None:
        super().configure_ddp()
        module: Any = self.lightning_module
        model, engine = module.model, module.engine
        known = {id(p) for p in (*engine.shared, *engine.private)}
        # By a callback, to train later, for which the engine must know them.
        frozen = [name for name, p in model.named_parameters() if id(p) in known and not p.requires_grad]
        for name in frozen:
            model.get_parameter(name).requires_grad_()
        engine.close()
        shard(model, init_device_mesh(self.root_device.type, (self.world_size,)))
        module.engine = module.make_engine()  # of other parameters than before
        module.engine.load_state_dict(engine.state_dict())
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)

    def setup(self, trainer: Trainer) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().setup(trainer)
            return
        # Lightning would send the first rank's parameters to all, and those in parts are no copies.
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        self.setup_precision_plugin()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        state = super().lightning_module_state_dict()
        parameters = dict(self.lightning_module.named_parameters(remove_duplicate=False))
        whole: dict[int, Any] = {}  # of each parameter once, or what encoders tie would be read back as two
        for name, value in state.items():
            key = id(parameters.get(name, value))
            if key not in whole:
                whole[key] = self._whole(value)
        return {name: whole[id(parameters.get(name, value))] for name, value in state.items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        found = optimizer.state_dict()
        state = {i: {key: self._whole(value) for key, value in one.items()} for i, one in found["state"].items()}
        return {**found, "state": state}

    def _whole(self, value: Any) -> Any:
        """On the rank that writes; for all ranks, for each has a part."""
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        # A copy: where the parts are uneven, it lies in a longer buffer, which would be saved too.
        return torch.empty_like(whole, device="cpu").copy_(whole) if self.is_global_zero else value

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own, found = self.lightning_module.state_dict(), checkpoint["state_dict"]
        super().load_model_state_dict({"state_dict": {k: _as(v, own.get(k)) for k, v in found.items()}}, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = []
        for optimizer, found in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {i: {key: _as(v, parameters[i]) for key, v in one.items()} for i, one in found["state"].items()}
            states.append({**found, "state": state})
        super().load_optimizer_state_dict({"optimizer_states": states})


def _as(value: Any, like: Any) -> Any:
    """This rank's part of a whole tensor, where `like` is one of as many numbers."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return part(value.to(like.device), like)
    return value


def shard(model: MultiTaskModel, mesh: DeviceMesh) -> None:
    """Divides the parameters of the encoders that tasks share.

    Raises:
        ValueError: tasks share no encoder, or something outside it uses its parameters.
    """
    encoders = [member for member in model.shared() if isinstance(member, Encoder)]
    if not encoders:
        raise ValueError(
            "trainer.strategy=fsdp divides the encoder that tasks share, and they share none: say trainer.strategy=ddp."
        )
    for encoder in encoders:
        own = {id(module) for module in encoder.modules()}
        inside = {id(parameter) for parameter in encoder.parameters()}
        for name, module in model.named_modules():
            if id(module) not in own and any(id(p) in inside for p in module.parameters(recurse=False)):
                raise ValueError(
                    f"trainer.strategy=fsdp divides the shared encoder, and {name} uses some of its parameters, of "
                    "which FSDP2 would give it copies: say trainer.strategy=ddp."
                )
        for parameter in encoder.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP2 divides no other, such as convolutions' channels_last
        # Whole from before the forward until the step's gradients are there: a rank may have no rows, and so no forward
        # that would take its part in the gathering.
        fully_shard(encoder, mesh=mesh, reshard_after_forward=False)
