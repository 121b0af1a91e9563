"""Checks what a route found against gradients taken loss by loss, the first time that it goes a way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlbench.gradients.layers import LayerGradients

# Hooks on the results of operations can't be seen in the graph.
MEND = (
    "Say engine.route=sequential, which any hook on a result of that layer needs; if there is none, report what is "
    "special about the layer."
)


def verify(
    grads: LayerGradients,
    losses: Sequence[Tensor],
    factor: float,
    shared: Sequence[nn.Parameter],
    *,
    names: Sequence[str],
    tasks: Sequence[str],
    rough: bool,
) -> bool:
    """Compares rows, and the products of their sums, in every part; one row is there at a time.

    Args:
        grads: what the route found.
        losses: of the active tasks; their graph must be alive.
        factor: on the losses.
        shared: parameters.
        names: of the parameters.
        tasks: names of the active tasks.
        rough: the inner products are approximate, and not compared.

    Returns:
        Whether all numbers were finite: of others nothing can be said.

    Raises:
        RuntimeError: naming task and parameter where the two differ.
    """
    dtype = shared[0].dtype
    coarse, fine = _tolerances(dtype)
    taken = [index for part in grads.parts for index in part.indices]
    signs = torch.randn(len(losses), generator=torch.Generator().manual_seed(0)).tolist()
    sums: dict[int, Tensor] = {}
    sizes: dict[int, float] = dict.fromkeys(taken, 0.0)
    whole = 0.0
    for position, (loss, sign) in enumerate(zip(losses, signs, strict=True)):
        straight = _rows(loss, [shared[index] for index in taken], factor)
        one_hot = torch.zeros(max(part.group for part in grads.parts) + 1, len(losses), dtype=dtype)
        one_hot[:, position] = 1
        found = grads.combine(one_hot.to(shared[0].device))
        norms = [float(row.double().norm()) for row in straight]
        total = sum(norm**2 for norm in norms) ** 0.5
        whole += abs(sign) * total
        for index, row, norm in zip(taken, straight, norms, strict=True):
            other = found[index]
            assert other is not None
            gap = float((other - row).double().norm())
            if not math.isfinite(gap):
                return False
            if gap > coarse * norm + fine * total:
                raise RuntimeError(
                    f"engine.route={grads.route}: the gradient of task {tasks[position]!r} at {names[index]} differs "
                    f"by {gap / norm if norm else torch.inf:.1e} of its norm from the one that is taken by "
                    f"itself. {MEND}"
                )
            sums[index] = row * sign + sums.get(index, 0.0)
            sizes[index] += abs(sign) * norm
    vector = torch.tensor(signs, dtype=torch.float64)
    for part in [] if rough else grads.parts:
        blocks = [product.double().cpu() for product in part.products()]
        if not blocks:  # of no rows
            continue
        products = torch.stack(blocks).sum(0)
        straight_square = sum(float(sums[index].double().square().sum()) for index in part.indices)
        size = sum(sizes[index] for index in part.indices)
        gap = abs(float(vector @ products @ vector) - straight_square)
        if not math.isfinite(gap):
            return False
        if gap > coarse * size**2 + fine * whole**2:
            share = gap / size**2 if size else torch.inf
            raise RuntimeError(
                f"engine.route={grads.route}: inner products of the tasks' gradients at {names[part.indices[0]]} "
                f"differ by {share:.1e} of their size from those of gradients taken by themselves. {MEND}"
            )
    return True


def verify_passing(
    squares: Tensor,
    straight_squares: Tensor,
    found: Sequence[Tensor | None],
    straight: Sequence[Tensor | None],
) -> None:
    """Compares what one backward measured and wrote with the same of the tasks' gradients.

    Args:
        squares: (A,) of their norms.
        straight_squares: likewise.
        found: what was written.
        straight: what is to be.

    Raises:
        RuntimeError: where the two differ.
    """
    both = [(one, other) for one, other in zip(found, straight, strict=True) if one is not None and other is not None]
    coarse, fine = _tolerances(both[0][0].dtype)
    norms = [float(other.double().norm()) for _, other in both]
    total = sum(norm**2 for norm in norms) ** 0.5
    gaps = [float((one - other).double().norm()) for one, other in both]
    alike = all(gap <= coarse * norm + fine * total for gap, norm in zip(gaps, norms, strict=True))
    same = [one is None for one in found] == [other is None for other in straight]
    if not same or not alike or (squares - straight_squares).abs().sum() > coarse * straight_squares.sum():
        raise RuntimeError(
            "One backward of the weighted losses finds other norms or gradients at the last shared layer than the "
            f"tasks' own backwards. {MEND}"
        )


def _tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """Of one parameter's gradient and of the whole row, where those of a parameter are rounding errors alone.

    Sums in another order differ by less, products in TF32 or bfloat16 by more.
    """
    rounded = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    coarse = 0.03 if rounded else 3 * torch.finfo(dtype).eps ** 0.5
    return coarse, coarse / 1000


def _rows(loss: Tensor, parameters: Sequence[nn.Parameter], factor: float) -> Sequence[Tensor]:
    return torch.autograd.grad(
        loss,
        parameters,
        torch.full_like(loss, factor),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
