"""The ranks that train together: sums over them, and the share of a sum's columns that each one works on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BUILT = dist.is_available()  # torch may have been built without


class Ranks:
    """The ranks of a process group; one alone where none is set up. Every call is one of all ranks.

    Sums come out the same to the bit on every rank.

    Args:
        group: None: the default group, once there is one.
        device: where the group's backend takes tensors: the parameters' device.
    """

    def __init__(self, group: dist.ProcessGroup | None, *, device: torch.device) -> None:
        self._group, self._device = group, device

    @property
    def size(self) -> int:
        """Number of ranks; 1 before a process group is there."""
        return dist.get_world_size(self._group) if BUILT and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """This one's number."""
        return dist.get_rank(self._group) if self.size > 1 else 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, on the tensor's device."""
        if self.size == 1:
            return tensor
        total = tensor.to(self._device, copy=True)
        dist.all_reduce(total, group=self._group)
        return total.to(tensor.device)

    def table(self, row: Tensor) -> Tensor:
        """(W, n) the rows (n,) of all ranks."""
        if self.size == 1:
            return row[None]
        rows = row.new_empty(self.size * len(row), device=self._device)
        dist.all_gather_single(rows, row.to(self._device), group=self._group)
        return rows.view(self.size, -1).to(row.device)

    def common(self, names: list[str] | None) -> list[str]:
        """Those of this rank's names that all ranks give, in order; None gives any. Rank 0's, where this one gives any.

        Needed at set-up alone.
        """
        if self.size == 1:
            return names or []
        given: list[list[str] | None] = [None] * self.size
        dist.all_gather_object(given, names, group=self._group)
        lists = [found for found in given if found is not None]
        return [name for name in lists[0] if all(name in found for found in lists)] if lists else []

    def share(self, columns: int) -> int:
        """Columns of each rank's part, the last of which are padding on the last ranks."""
        return -(-columns // self.size)

    def scatter(self, rows: Tensor) -> Tensor:
        """(A, P) -> (A, share(P)): this rank's columns of the sum over the ranks, zero where they are padding."""
        tasks, columns = rows.shape
        if self.size == 1 or not columns:
            return rows
        share = self.share(columns)
        parts = rows.new_zeros(self.size, tasks, share)
        for part, piece in zip(parts, rows.split(share, dim=1), strict=False):
            part[:, : piece.shape[1]] = piece
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter_single(mine, parts.view(-1, share), group=self._group)
        return mine

    def gather(self, part: Tensor, columns: int) -> Tensor:
        """(share(P),) of every rank -> (P,)."""
        if self.size == 1 or not columns:
            return part
        parts = part.new_empty(self.size * len(part))
        dist.all_gather_single(parts, part, group=self._group)
        return parts[:columns]

    def sum_found(self, grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """The sums over the ranks that have one; None where none has. `like` gives shapes and types."""
        if self.size == 1:
            return list(grads)
        # A sparse one, which other ranks may lack, counts for more than all dense ones together.
        ones = [0 if grad is None else self.size + 1 if grad.is_sparse else 1 for grad in grads]
        found = self.sum(torch.tensor(ones, dtype=torch.int32))
        sums: list[Tensor | None] = [None] * len(grads)
        for dtype in dict.fromkeys(tensor.dtype for tensor in like):
            chosen = [i for i, tensor in enumerate(like) if tensor.dtype == dtype and found[i]]
            if chosen:
                flat = torch.cat([_flat(grads[i], like[i]) for i in chosen])
                dist.all_reduce(flat, group=self._group)
                for i, part in zip(chosen, flat.split([like[i].numel() for i in chosen]), strict=True):
                    total = part.view_as(like[i])
                    sums[i] = total.to_sparse(1) if found[i] > self.size else total
        return sums


def _flat(grad: Tensor | None, like: Tensor) -> Tensor:
    return (torch.zeros_like(like, requires_grad=False) if grad is None else grad.to_dense()).reshape(-1)
