"""Writes the gradients of a step to `.grad`, and refuses numbers that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import torch
from torch import Tensor, nn

from mtlbench.gradients.ranks import Ranks


def write_private(
    private: Sequence[nn.Parameter], rows: Sequence[dict[int, Tensor]], factors: Sequence[float] | None, ranks: Ranks
) -> None:
    """Each private parameter's gradient: the sum over the tasks that reach it, in fact one.

    Args:
        private: the parameters.
        rows: for each task this rank's part of its gradients of them, by index.
        factors: of the tasks; None for 1.
        ranks: those that train together.
    """
    sums: list[Tensor | None] = [None] * len(private)
    for row, factor in zip(rows, factors or [1.0] * len(rows), strict=True):
        for index, grad in row.items():
            grad = grad if factor == 1.0 else grad * factor
            old = sums[index]
            sums[index] = grad if old is None else old + grad
    # Sums over micro-batches are in float32 where parameters are in half precision.
    grads = [
        grad if grad is None or grad.dtype == p.dtype else grad.to(p.dtype)
        for grad, p in zip(sums, private, strict=True)
    ]
    write(private, ranks.sum_found(grads, private))


def write(parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Replaces `.grad`, None included; it lies in memory as its parameter does, as `.backward` has it.

    Autograd hands out parts of tensors, transposed ones, or one number expanded (of a bias that is summed). Fused
    optimizers take both number by number in the order of memory, and would be wrong without a word.
    """
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is not None and grad.layout is torch.strided:
            if grad.stride() != parameter.stride():
                grad = torch.empty_like(parameter, requires_grad=False).copy_(grad)
            elif not grad.is_contiguous() and torch.empty_like(grad, device="meta").stride() != grad.stride():
                grad = grad.clone()  # such a copy is dense
        parameter.grad = grad


def separate(parameters: Sequence[nn.Parameter]) -> int:
    """Gives every `.grad` numbers of its own, as clipping in place wants them; says how many had none.

    Autograd, `.backward` too, hands one tensor to several parameters (of a sum of two), or parts of one that overlap.
    """
    places = [
        (grad.data_ptr(), grad, parameter)
        for parameter in parameters
        if (grad := parameter.grad) is not None and grad.layout is torch.strided
    ]
    places.sort(key=itemgetter(0))
    end = copied = 0
    for start, grad, parameter in places:
        if start < end:
            parameter.grad = grad.clone()
            copied += 1
        end = max(end, start + grad.nbytes)
    return copied


def norm(grads: Sequence[Tensor | None]) -> float:
    """Of all of them as one vector."""
    values = [g.coalesce().values() if g.is_sparse else g for g in grads if g is not None]
    return float(nn.utils.get_total_norm(values))


def ratio(target: float, size: float) -> float:
    """What rescales the norm `size` to `target`; a zero direction stays zero."""
    return target / size if size > 0 else 1.0


def refuse_non_finite(what: str, bad: Tensor, *, tasks: Sequence[str], step: int, also: str = "") -> None:
    """Says where numbers were not finite.

    Args:
        what: loss or gradient.
        bad: (W, T) of which rank and task.
        tasks: names.
        step: number.
        also: what else it may be.

    Raises:
        FloatingPointError: always.
    """
    names = ", ".join(name for name, found in zip(tasks, bad.any(0).tolist(), strict=True) if found)
    where = f" on rank {', '.join(map(str, bad.any(1).nonzero().flatten().tolist()))}" if len(bad) > 1 else ""
    raise FloatingPointError(
        f"Non-finite {what} of task {names} at step {step}{where}{also}. Look at that step's data, lower the "
        "learning rate, or clip gradients."
    )
