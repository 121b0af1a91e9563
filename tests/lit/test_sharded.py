"""Parameters that are sharded over ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mtlbench.gradients import GradientEngine
from tests.contract.balancers import build


def test_sharded_parameters_are_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        encoder, heads = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
        fully_shard(encoder, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"sharded over ranks .*Leave every rank a copy of the model"):
            GradientEngine(encoder, build("pcgrad", 2), tasks=("a", "b"), private=heads)
    finally:
        dist.destroy_process_group()
