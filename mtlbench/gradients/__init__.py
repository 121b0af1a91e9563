"""Gradients of several tasks, balanced: usable in any torch loop, without Lightning and without Hydra."""

from mtlbench.gradients.engine import BalanceRecord, GradientEngine

__all__ = ["BalanceRecord", "GradientEngine"]
