"""mtlbench: multi-task learning with honest comparison of sharing and balancing methods."""

__version__ = "0.1.0"
