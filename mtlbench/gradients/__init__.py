"""Gradients of several tasks, balanced: usable in any torch loop, without Lightning and without Hydra."""

from mtlbench.gradients.engine import GradientEngine
from mtlbench.gradients.record import BalanceRecord

__all__ = ["BalanceRecord", "GradientEngine"]
