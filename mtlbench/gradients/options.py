"""The engine's options, and whether they fit a balancer and a step: that is known before there is a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mtlbench.balancing.base import Aggregator, Balancer, Weighting
from mtlbench.gradients.measure import Where
from mtlbench.gradients.routes import ROUTES, Route


@dataclass(frozen=True, kw_only=True)
class Options:
    """See `GradientEngine`."""

    measure: Where | None = None
    heads: Literal["raw", "weighted"] = "raw"
    normalize: Literal["none", "match_equal"] = "none"
    refresh: int = 1
    products: Literal["exact", "bfloat16"] = "exact"
    route: Route = "auto"
    chunk: int | None = None

    @property
    def forced(self) -> bool:
        """Whether a route other than `sequential` is asked for."""
        return self.route not in ("auto", "sequential")

    def check(self, balancer: Balancer) -> None:
        """Whether they are known, fit each other and the balancer.

        Raises:
            ValueError: naming the options.
        """
        name = type(balancer).__name__
        if balancer.num_batches not in (1, 3) or (balancer.num_batches == 3 and not isinstance(balancer, Weighting)):
            raise ValueError(
                f"{name} takes {balancer.num_batches} batches a step; the engine gives one, or three to a Weighting."
            )
        if self.heads not in ("raw", "weighted") or self.normalize not in ("none", "match_equal"):
            raise ValueError(
                f"heads is raw|weighted and normalize none|match_equal; got {self.heads!r} and {self.normalize!r}."
            )
        if self.products not in ("exact", "bfloat16"):
            raise ValueError(f"products is exact|bfloat16; got {self.products!r}.")
        if self.route not in ROUTES or (self.chunk is not None and self.chunk < 1):
            raise ValueError(f"route is {'|'.join(ROUTES)} and chunk at least 1; got {self.route!r} and {self.chunk}.")
        if self.heads == "weighted" and isinstance(balancer, Aggregator):
            raise ValueError(f"engine.heads=weighted needs task weights, and {name} has none; say engine.heads=raw.")
        self._check_refresh(balancer)
        if isinstance(balancer, Weighting):
            self._check_weighting(balancer)
            return
        for option, default in (("measure", None), ("products", "exact")):
            if getattr(self, option) != default:
                raise ValueError(f"engine.{option} says how a Gramian is taken, and {name} does not look at one.")
        if self.forced:
            raise ValueError(self.no_route(balancer))

    def _check_refresh(self, balancer: Balancer) -> None:
        if self.refresh < 1:
            raise ValueError(f"refresh is a number of steps, at least 1; got {self.refresh}.")
        one = isinstance(balancer, Weighting) and balancer.num_batches == 1 and balancer.groups == "all"
        plain = type(balancer).transform is Balancer.transform and not balancer.needs_after_step
        if self.refresh > 1 and not (one and plain):
            raise ValueError(
                f"engine.refresh={self.refresh} keeps the weights of a Weighting for some steps: one of a single "
                "batch, with one weight a task, which sees no more of a step than its Gramian; "
                f"{type(balancer).__name__} is none. Say engine.refresh=1."
            )

    def _check_weighting(self, balancer: Weighting) -> None:
        name = type(balancer).__name__
        place = balancer.measure if self.measure is None else self.measure
        if balancer.groups == "layer" and place != "parameters":
            raise ValueError(f"{name} weighs each layer by itself and so needs engine.measure=parameters.")
        if place == "features" and balancer.num_batches > 1:
            raise ValueError(
                f"{name} compares the gradients of several batches, and features of different examples have "
                "nothing to compare: say engine.measure=parameters."
            )
        if self.forced and (place == "features" or balancer.num_batches > 1):
            raise ValueError(self.no_route(balancer))

    def check_step(self, *, several: bool, alone: bool) -> None:
        """Whether they fit a step.

        Args:
            several: it has several micro-batches.
            alone: it is taken on one process, of parameters that are whole there.

        Raises:
            ValueError: naming the option.
        """
        given = "several micro-batches" if several else "several ranks, or sharded parameters"
        if self.forced and (several or not alone):
            raise ValueError(
                f"engine.route={self.route} takes one micro-batch a step on one process, and here there are {given}, "
                "which go the sequential one: say engine.route=auto."
            )
        if self.products != "exact" and (several or not alone):
            raise ValueError(
                f"engine.products={self.products} takes one micro-batch a step on one process, and here there are "
                f"{given}, whose products are exact: say engine.products=exact."
            )
        if self.refresh > 1 and several:
            raise ValueError(
                f"engine.refresh={self.refresh} keeps weights from step to step, and a step of several micro-batches "
                "asks the balancer each time: say engine.refresh=1."
            )

    def no_route(self, balancer: Balancer) -> str:
        """Why the route can't be taken."""
        return (
            f"engine.route={self.route} serves a Weighting of one batch measured at shared parameters, in float32 or "
            f"float64; here {type(balancer).__name__} or the weights' precision asks for something else. Say "
            "engine.route=auto."
        )
