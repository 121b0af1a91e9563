"""Metrics that torchmetrics lacks, on its Metric base so that they reduce over ranks alike."""

from mtlbench.metrics.entities import IGNORED, EntityF1
from mtlbench.metrics.text import TEXT_METRICS, TextMetric

__all__ = ["IGNORED", "TEXT_METRICS", "EntityF1", "TextMetric"]
