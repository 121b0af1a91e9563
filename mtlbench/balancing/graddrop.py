"""GradDrop: in each coordinate, gradients of one sign survive, drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlbench.balancing.base import Aggregator, Property, TaskSpec, select
from mtlbench.balancing.checks import by_task
from mtlbench.balancing.state import vanishes

# SplitMix64: the counter's increment and the two multipliers of its hash, as signed 64-bit numbers.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def splitmix64(key: int, counters: Tensor) -> Tensor:
    """Random 64-bit numbers that depend on a key and a counter alone.

    Args:
        key: within int64.
        counters: int64 of any shape.

    Returns:
        int64 of the same shape: outputs number `counter` (from 0) of the SplitMix64 generator seeded with `key`.
        Steele, Lea, Flood 2014.
    """
    z = ((counters + 1) * _INCREMENT).add_(key)  # int64 wraps round
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        z.bitwise_xor_(_shift_right(z, shift)).mul_(multiplier)
    return z.bitwise_xor_(_shift_right(z, 31))


def uniforms(key: int, counters: Tensor) -> Tensor:
    """float64 numbers in [0, 1), of `counters`' shape, by key and counter alone: the same on every rank and device."""
    return _shift_right(splitmix64(key, counters), 11).double() * 2.0**-53


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's carries the sign."""
    return (z >> bits).bitwise_and_(2 ** (64 - bits) - 1)


def graddrop_direction(jacobian: Tensor, drawn: Tensor, *, leak: Tensor) -> Tensor:
    """Sum of the gradients that survive.

    Args:
        jacobian: (A, P) gradients.
        drawn: (P,) uniforms: below a coordinate's positive purity its positive values survive, else the negative.
        leak: (A,) share of each task's dropped values that survives.

    Returns:
        (P,) the direction.
    """
    positive, negative = jacobian.clamp_min(0), jacobian.clamp_max(0)
    up, down, leak = positive.sum(0), negative.sum(0), leak.to(jacobian)
    # The purity is up / (up - down).
    return torch.where(drawn * (up - down) < up, up + leak @ negative, down + leak @ positive)


class GradDrop(Aggregator):
    """Gradient sign dropout.

        p = (1 + sum_i g_i / sum_i |g_i|) / 2 in each coordinate; u uniform on [0, 1)
        m_i = 1 where g_i > 0 and u < p, or g_i < 0 and u >= p, else 0
        d = sum_i (leak_i + (1 - leak_i) m_i) g_i

    On average over u, d is the sum of the gradients. The uniforms are hashes of a key, drawn at each step from
    the balancer's own generator, and the coordinate's number: the same however the columns are split. The
    status is degenerate where d = 0.

    Args:
        leak: share of the dropped values that survives, in [0, 1]: one for all tasks, or by task name, 0 where
            none is given.

    Raises:
        ValueError: a leak outside [0, 1], or of an unknown task.

    Paper: Chen, Ngiam, Huang, Luong, Kretzschmar, Chai, Anguelov 2020, arXiv:2010.06808.

    Note:
        The paper drops gradients at a layer's activations, multiplied by the activations' sign and summed over
        the batch; here, as in TorchJD, those of the shared parameters. Its monotone f of p is the identity,
        the paper's own choice.
    """

    properties = frozenset({Property.PERMUTATION_EQUIVARIANT})

    def __init__(
        self,
        *,
        num_tasks: int,
        seed: int,
        tasks: Sequence[TaskSpec] | None = None,
        leak: float | Mapping[str, float] = 0.0,
    ) -> None:
        super().__init__(num_tasks=num_tasks, seed=seed, tasks=tasks)
        self.leak: Tensor
        shares = by_task(leak, tasks, num_tasks=num_tasks, option="leak", default=0.0, least=0, most=1)
        self.register_buffer("leak", shares)

    def forward(self, jacobian: Tensor, losses: Tensor, *, active: Tensor | None = None) -> Tensor:
        limits = torch.iinfo(torch.int64)
        key = int(torch.randint(limits.min, limits.max, (), generator=self.generator))
        counters = torch.arange(jacobian.shape[1], device=jacobian.device)
        leak = select(self.leak, None if active is None else active.to(self.leak.device))
        direction = graddrop_direction(jacobian, uniforms(key, counters), leak=leak)
        self.status = "degenerate" if vanishes(direction) else "solved"
        return direction
