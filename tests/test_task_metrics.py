"""Metrics that a benchmark's YAML chooses for a task, and the score that follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from torch import Tensor

from mtlbench.data.names import expand
from mtlbench.data.tables import Split, TaskInfo
from mtlbench.lit.evaluation import Evaluation
from mtlbench.metrics.correlation import Correlation
from mtlbench.tasks import TASK_TYPES, Task


def make(kind: str, train: Tensor, *, outputs: int = 1, labels: tuple[str, ...] = (), **chosen: Any) -> Task:
    info = TaskInfo(name="t", type=kind, dataset="d", num_outputs=outputs, labels=labels, **chosen)
    return TASK_TYPES[kind](info, train, head_options={"pooling": "first"})


def evaluation(task: Task, targets: Tensor) -> Evaluation:
    split = Split({"x": torch.zeros(len(targets), 1)}, targets={"t": targets})
    return Evaluation({"t": task}, {"d": split}, {}, split="test")


@pytest.mark.parametrize(
    ("chosen", "metrics", "primary"),
    [
        ({}, ["accuracy", "macro_f1"], "accuracy"),
        ({"primary": "macro_f1"}, ["accuracy", "macro_f1"], "macro_f1"),
        ({"metrics": ("matthews",)}, ["matthews"], "matthews"),
        ({"metrics": ("f1", "accuracy")}, ["f1", "accuracy"], "f1"),
        ({"metrics": ("f1", "accuracy"), "primary": "accuracy"}, ["f1", "accuracy"], "accuracy"),
    ],
)
def test_the_yaml_chooses_metrics(chosen: dict[str, Any], metrics: list[str], primary: str) -> None:
    task = make("classification", torch.tensor([0, 1]), outputs=2, labels=("a", "b"), **chosen)
    assert (list(task.perfect), list(task.metrics()), task.primary) == (metrics, metrics, primary)
    assert all(task.higher_is_better(name) for name in metrics)


def test_a_tag_that_is_no_entity_is_scored_by_the_word() -> None:
    task = make("tagging", torch.tensor([[0, 1]]), outputs=2, labels=("N", "V"), metrics=("token_accuracy",))
    assert list(task.metrics()) == ["token_accuracy"]
    assert task.primary == "token_accuracy"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"metrics": ("mathews",)}, "classification has no metric 'mathews'. Did you mean matthews"),
        ({"primary": "matthews"}, "the primary metric 'matthews' is none of its metrics: accuracy, macro_f1"),
    ],
)
def test_unknown_metrics_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("classification", torch.tensor([0, 1]), outputs=2, **chosen)
    with pytest.raises(ValueError, match="f1 is that of the second of two classes, and there are 3"):
        make("classification", torch.tensor([0, 2]), outputs=3, metrics=("f1",)).metrics()


def test_the_benchmark_hands_them_on() -> None:
    nodes = expand(
        {
            "a": {"type": "regression", "dataset": "d", "column": "y", "metrics": ["pearson", "mae"]},
            "b": {"type": "regression", "dataset": "d", "column": "y", "primary": "mae"},
        }
    )
    assert (nodes["a"].metrics, nodes["a"].primary) == (("pearson", "mae"), None)
    assert (nodes["b"].metrics, nodes["b"].primary) == (None, "mae")


def test_classification_metrics_are_sklearns() -> None:
    draw = np.random.default_rng(0)
    targets, predictions = draw.integers(0, 2, 60), draw.integers(0, 2, 60)
    chosen = ("matthews", "f1")
    task = make("classification", torch.tensor(targets), outputs=2, labels=("0", "1"), metrics=chosen)
    metrics = task.metrics()
    task.update(metrics, torch.tensor(predictions), torch.tensor(targets))
    assert float(metrics["matthews"].compute()) == pytest.approx(
        sklearn.metrics.matthews_corrcoef(targets, predictions), abs=1e-6
    )
    assert float(metrics["f1"].compute()) == pytest.approx(sklearn.metrics.f1_score(targets, predictions))


@pytest.mark.parametrize("ranks", [False, True])
def test_correlations_are_scipys_whatever_the_batches(ranks: bool) -> None:
    draw = np.random.default_rng(1)
    targets = draw.integers(0, 6, 90) + 1e6  # many ties, far from 0
    predictions = targets + draw.normal(size=90)
    metric = Correlation(ranks=ranks)
    for rows in np.array_split(np.arange(90), 4):
        metric.update(torch.tensor(predictions[rows]), torch.tensor(targets[rows]))
    expected = (scipy.stats.spearmanr if ranks else scipy.stats.pearsonr)(predictions, targets).statistic
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_predicting_a_constant_scores_0_and_the_truth_1(name: str) -> None:
    targets = torch.tensor([1.0, 2.0, 4.0, float("nan")])
    task = make("regression", targets, metrics=(name, "mae"))
    evaluate = evaluation(task, targets)
    assert evaluate.trivial["t"] == 0
    for output, score in ((torch.full((4,), 0.3), 0.0), (task.encode(targets).nan_to_num(9.0), 1.0)):
        evaluate.reset(torch.device("cpu"))
        evaluate.update({"t": output}, {"t": targets}, rows=torch.arange(4))
        assert evaluate.compute()["score"] == pytest.approx(score, abs=1e-5)


def test_the_majority_has_matthews_0() -> None:
    targets = torch.tensor([0, 1, 1, 1])
    task = make("classification", targets, outputs=2, labels=("a", "b"), metrics=("matthews",))
    assert evaluation(task, targets).trivial["t"] == 0


@pytest.mark.parametrize(
    ("kind", "targets", "metric"),
    [
        ("regression", torch.tensor([1.0, 1.0]), "pearson"),
        ("regression", torch.tensor([1.0, 1.0]), "spearman"),
        ("classification", torch.tensor([0, 0]), "matthews"),
    ],
)
def test_metrics_without_a_meaning_on_equal_targets_refuse_them(kind: str, targets: Tensor, metric: str) -> None:
    task = make(kind, torch.arange(2).to(targets), outputs=2, labels=("a", "b"), metrics=(metric,))
    with pytest.raises(ValueError, match="Give the split varied labels"):
        evaluation(task, targets)
