"""Whether a balancer's class takes what a configuration asks of it, as far as the text of the class tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench import source

# The engine's options that are for one kind of balancer, with the values at which they ask nothing of it.
FOR_WEIGHTINGS = {"measure": (None,), "route": ("auto", "sequential"), "refresh": (1,), "products": ("exact",)}
# Those that are for steps of one batch, and for one device.
FOR_ONE_BATCH = ("route", "refresh", "products")
FOR_ONE_DEVICE = ("route", "products")


def check_balancer(
    node: Mapping[str, Any], *, num_tasks: int, engine: Mapping[str, Any], accumulated: int = 1, devices: int = 1
) -> None:
    """Refuses what the balancer or the engine would refuse later; of a class without a file, nothing.

    Args:
        node: of the configuration, with `_target_`.
        num_tasks: that are trained.
        engine: the options of `GradientEngine`.
        accumulated: batches of a step.
        devices: that train together, as far as is known.

    Raises:
        ValueError: naming the keys, and what to say instead.
    """
    classes = list(source.classes(str(node["_target_"])))
    name, kind = str(node["_target_"]).rpartition(".")[2], source.kind(classes)
    least = source.declared(classes, "min_tasks")
    if isinstance(least, int) and num_tasks < least:
        raise ValueError(
            f"{name} balances at least {least} tasks, and here there are {num_tasks}. Choose another balancer, or more "
            "tasks."
        )
    for inner in node.values():  # a wrapper's
        if isinstance(inner, Mapping) and "_target_" in inner:
            check_balancer(inner, num_tasks=num_tasks, engine={})
    for key, nothing in FOR_WEIGHTINGS.items():
        given = engine.get(key, nothing[0])
        if given in nothing:
            continue
        instead = "" if nothing[0] is None else f", or say engine.{key}={nothing[0]}"
        if kind not in ("Weighting", source.UNKNOWN):
            raise ValueError(
                f"{name} is {'an' if kind == 'Aggregator' else 'a'} {kind}, and engine.{key}={given} is for a "
                f"Weighting, which looks at a Gramian. Leave it out{instead}."
            )
        if key in FOR_ONE_BATCH and accumulated > 1:
            raise ValueError(
                f"engine.{key}={given} with trainer.accumulate_grad_batches={accumulated}: it is for steps of one "
                "batch. Leave one of the two out."
            )
        if key in FOR_ONE_DEVICE and devices > 1:
            raise ValueError(
                f"engine.{key}={given} on {devices} devices, which go the sequential way. Say "
                f"engine.{key}={nothing[0]}."
            )
    if kind == "Aggregator" and engine.get("heads") == "weighted":
        raise ValueError(f"{name} is an Aggregator, which has no task weights. Say engine.heads=raw.")
