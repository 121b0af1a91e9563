"""Task gradients of one step, layer by layer: what the quick routes find."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtlbench.gradients.parts import Part
from mtlbench.gradients.rows import symmetric


@dataclass
class LayerGradients:
    """Gradients of the active tasks, A of T.

    Attributes:
        route: that was taken.
        parts: of the shared parameters that some loss reaches.
        private: for each task the gradients of the private parameters that it reaches, by index.
        number: of all shared parameters.
    """

    route: str
    parts: list[Part]
    private: list[dict[int, Tensor]]
    number: int

    @property
    def way(self) -> tuple[object, ...]:
        """The route and the forms of all parts."""
        return (self.route, *((type(part), *part.indices) for part in self.parts))

    def gramian(self, num_groups: int) -> Tensor:
        """(G, A, A) float64 inner products: float32 within a layer, summed in float64."""
        tasks = len(self.private)
        total: Tensor | None = None
        for part in self.parts:
            for product in part.products():
                if total is None:
                    total = torch.zeros(num_groups, tasks, tasks, dtype=torch.float64, device=product.device)
                total[part.group].add_(product)  # `+=` would copy it to itself once more
        return torch.zeros(num_groups, tasks, tasks, dtype=torch.float64) if total is None else symmetric(total)

    def combine(self, weights: Tensor) -> list[Tensor | None]:
        """For each shared parameter the combination of its rows with its group's weights (G, A)."""
        grads: list[Tensor | None] = [None] * self.number
        for part in self.parts:
            for index, grad in zip(part.indices, part.combine(weights[part.group]), strict=True):
                grads[index] = grad
        return grads
