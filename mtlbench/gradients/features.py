"""Gradients measured at the representation that all tasks read, dL/dz: MGDA-UB and its kin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.gradients.losses import MicroBatch
from mtlbench.gradients.partition import Modules, members, parameters
from mtlbench.gradients.ranks import Ranks
from mtlbench.gradients.rows import Rows

# Of the norm of a task's gradient. Sums in another order differ by 1e-6, in bfloat16 by some 1e-3; a second path that
# a forward takes past the features, or a feature counted twice, by far more.
AGREEMENT = 0.02


class Features:
    """The output of the one shared module, watched while it runs.

    That the losses reach the shared parameters through it alone is not taken on trust: the first time a task is
    seen, its gradient is computed straight and by way of the features, and the two must agree.

    Raises:
        ValueError: the shared parameters are not those of one module.

    Paper: Sener, Koltun 2018, arXiv:1810.04650 (MGDA-UB).
    """

    def __init__(self, shared: Modules) -> None:
        found = members(shared)
        if len(found) != 1 or not isinstance(found[0], nn.Module):
            raise ValueError(
                f"engine.measure=features needs one shared module whose output every head reads; got {len(found)} "
                "shared modules or parameters, so that no tensor is what all tasks share. Say "
                "engine.measure=parameters."
            )
        self._module = found[0]
        self._checked: set[int] = set()
        self._runs = 0  # since the last step
        self._outputs: list[Tensor] = []  # of the last of them
        self._hook = self._module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = [tensor for tensor in _tensors(output) if tensor.requires_grad]
        if tensors:
            self._runs, self._outputs = self._runs + 1, tensors

    def __getstate__(self) -> dict[str, Any]:
        """Without the outputs: a copy of the module has this watch with it, and graphs can't be copied."""
        return self.__dict__ | {"_runs": 0, "_outputs": []}

    def take(self, batch: MicroBatch) -> list[Tensor]:
        """The features that the losses were computed from.

        Raises:
            RuntimeError: the shared module ran more often than once, or not at all, or a loss reaches its parameters
                past the features.
        """
        runs, outputs = self._runs, self._outputs
        self.forget()
        if not batch.losses:  # other ranks have some; here the module need not have run
            return [next(self._module.parameters()).new_empty(0)]
        if runs != 1:
            raise RuntimeError(
                f"engine.measure=features compares the tasks' gradients at one representation, and the shared module "
                f"ran {runs} times for this step's losses: features of different examples have nothing to compare. "
                "Make the engine before the first forward, and say engine.measure=parameters where tasks have batches "
                "of their own."
            )
        for task, loss in zip(batch.active, batch.losses, strict=True):
            if task not in self._checked and self._check(loss, outputs):
                self._checked.add(task)
        return outputs

    def _check(self, loss: Tensor, features: Sequence[Tensor]) -> bool:
        """Whether there was anything to compare: not where gradients overflow."""
        shared = parameters(self._module)
        straight = _gradients([loss], shared, None)
        through = _gradients(features, shared, _gradients([loss], features, None))
        gap = torch.stack([(a - b).norm() for a, b in zip(straight, through, strict=True)]).norm()
        size = torch.stack([a.norm() for a in straight]).norm()
        if gap > AGREEMENT * size:
            raise RuntimeError(
                f"engine.measure=features: by way of the shared module's output a task's gradient differs by "
                f"{float(gap / size):.1%} of its norm: the output is not all that the task reads of the shared "
                "parameters, or parts of it hang on each other. Say engine.measure=parameters."
            )
        return bool(gap.isfinite())

    def forget(self) -> None:
        """Drops what was watched of a forward whose losses are not balanced."""
        self._runs, self._outputs = 0, []

    def close(self) -> None:
        """Removes the hook."""
        self._hook.remove()


class FeatureRows(Rows):
    """Rows of the shared parameters, and beside them the Gramian at the features, summed over micro-batches."""

    def __init__(
        self,
        shared: Sequence[nn.Parameter],
        private: Sequence[nn.Parameter],
        *,
        num_tasks: int,
        features: Features,
        ranks: Ranks,
    ) -> None:
        super().__init__(shared, private, num_tasks=num_tasks, weigh=True, ranks=ranks)
        self._features = features
        self._products = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)

    def add(self, batch: MicroBatch, factor: float, *, retain_graph: bool = False) -> None:
        if not batch.totals.active:
            self._features.forget()
        else:
            features = self._features.take(batch)
            here = Rows(features, [], num_tasks=len(self.counts), weigh=False, ranks=self._ranks, columns="own")
            here.add(batch, factor, retain_graph=True)
            products = here.gramian(here.mean().jacobian, [0] * len(features))[0].cpu()
            index = torch.tensor(batch.totals.active)
            counts = torch.tensor(batch.totals.counts, dtype=torch.float64)
            self._products[index[:, None], index] += products * torch.outer(counts, counts)
        super().add(batch, factor, retain_graph=retain_graph)

    def at_features(self) -> Tensor:
        """(1, A, A) inner products of the active tasks' mean gradients dL/dz over all micro-batches and ranks."""
        index = torch.tensor(self.active)
        counts = self.counts[index]
        return (self._products[index[:, None], index] / torch.outer(counts, counts))[None].to(self.device)


def _gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        outputs, inputs, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in a module's output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from _tensors(value)
