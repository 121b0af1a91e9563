"""After training: a finished run predicts, gives features, is evaluated again and exported."""

from mtlbench.inference.trained import TrainedModel

load = TrainedModel.from_run

__all__ = ["TrainedModel", "load"]
