"""Losses, masks, metrics and trivial predictors of the task types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlbench.data.tables import Split, TaskInfo
from mtlbench.lit.evaluation import Evaluation
from mtlbench.metrics import EntityF1
from mtlbench.tasks import TASK_TYPES, Task

NAN = float("nan")


def make(kind: str, train: Tensor, *, outputs: int = 1, labels: tuple[str, ...] = (), **options: Any) -> Task:
    info = TaskInfo(name="t", type=kind, dataset="d", num_outputs=outputs, labels=labels)
    return TASK_TYPES[kind](info, train, head_options={"pooling": "first", **options})


def metric_values(task: Task, predictions: Tensor, targets: Tensor) -> dict[str, float]:
    metrics = task.metrics()
    task.update(metrics, predictions, targets)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def test_classification_masks_missing_labels() -> None:
    targets = torch.tensor([2, -100, 0, 2])
    task = make("classification", targets, outputs=3, labels=("x", "y", "z"))
    logits = torch.randn(4, 3)
    loss, count = task.loss(logits, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits[[0, 2, 3]], targets[[0, 2, 3]]))
    assert count == 3
    assert metric_values(task, torch.tensor([2, 1, 1, 2]), targets)["accuracy"] == pytest.approx(2 / 3)
    assert task.trivial(targets).tolist() == [2, 2, 2, 2]
    assert task.correct(torch.tensor([2, 1, 1, 2]), targets).tolist() == [True, True, False, True]
    _, none = task.loss(logits, torch.full((4,), -100))
    assert none == 0


def test_regression_loss_is_in_units_of_the_training_variance() -> None:
    train = torch.tensor([10.0, 30.0, NAN, 20.0])
    task = make("regression", train)
    std = (200 / 3) ** 0.5
    outputs = ((torch.tensor([0.0, 30.0, 5.0, 25.0]) - 20) / std).requires_grad_()
    loss, count = task.loss(outputs, task.encode(train))
    # errors 10, 0, 5; variance 200 / 3
    assert loss.item() == pytest.approx((100 + 0 + 25) / 3 / (200 / 3))
    assert count == 3
    loss.backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert outputs.grad[2] == 0
    values = metric_values(task, task.predict(outputs.detach()), train)
    assert values == {"rmse": pytest.approx((125 / 3) ** 0.5, rel=1e-6), "mae": pytest.approx(5.0)}
    assert task.trivial(train).tolist() == [20.0] * 4
    head = task.head(3)
    assert head({"x": torch.zeros(2, 3)}).shape == (2,)


def test_multilabel_masks_single_labels() -> None:
    targets = torch.tensor([[1.0, 0.0], [NAN, 1.0]])
    task = make("multilabel", targets, outputs=2, labels=("p", "q"))
    logits = torch.tensor([[2.0, -1.0], [5.0, -3.0]])
    loss, count = task.loss(logits, targets)
    expected = F.binary_cross_entropy_with_logits(torch.tensor([2.0, -1.0, -3.0]), torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(loss, expected)
    assert count == 3
    assert metric_values(task, task.predict(logits), targets)["accuracy"] == pytest.approx(2 / 3)
    assert task.head(3)({"x": torch.zeros(2, 3)}).shape == (2, 2)


def test_tagging() -> None:
    labels = ("O", "B-x", "I-x")
    targets = torch.tensor([[1, 2, 0, -100], [-100, 1, -100, 2]])
    task = make("tagging", targets, outputs=3, labels=labels, hidden=[4])
    predictions = torch.tensor([[1, 2, 0, 0], [0, 1, 0, 0]])  # the first entity right, the second cut short
    values = metric_values(task, predictions, targets)
    assert values == {"f1": pytest.approx(0.5), "token_accuracy": pytest.approx(4 / 5)}
    assert task.correct(predictions, targets).tolist() == [True, False]
    assert task.readable(predictions[1], task.labelled(targets)[1]) == ["B-x", "O"]
    logits = F.one_hot(targets.clamp(min=0), 3).float() * 9
    loss, count = task.loss(logits, targets)
    assert loss < 0.01
    assert count == 5
    assert task.head(6)({"x": torch.zeros(2, 5, 6)}).shape == (2, 5, 3)
    with pytest.raises(ValueError, match=r"needs features \(B, L, D\)"):
        task.head(6)({"x": torch.zeros(2, 6)})


def test_entity_f1_reads_each_sentence_by_itself() -> None:
    """An I- tag that begins a sentence does not go on with the entity that ends the one before."""
    metric = EntityF1(("O", "B-x", "I-x"))
    metric.update(torch.tensor([[1], [2]]), torch.tensor([[1], [2]]))
    assert metric.compute() == 1.0
    metric.update(torch.tensor([[0], [0]]), torch.tensor([[1], [0]]))
    assert metric.compute() == pytest.approx(2 * (1.0 * 2 / 3) / (1.0 + 2 / 3))  # 2 found of 3


def test_a_task_without_any_label_is_refused() -> None:
    with pytest.raises(ValueError, match="no labelled example in the training split of 'd'"):
        make("classification", torch.full((3,), -100), outputs=2)


def evaluation(targets: Tensor, train: Tensor) -> Evaluation:
    task = make("classification", train, outputs=2, labels=("a", "b"))
    return Evaluation(
        {"t": task}, {"d": Split({"x": torch.zeros(len(targets), 1)}, targets={"t": targets})}, {}, split="val"
    )


def test_scores() -> None:
    targets = torch.tensor([0, 0, 1, 1, 1])
    evaluate = evaluation(targets, torch.tensor([0, 0, 1]))
    for predictions, score in (([0, 0, 0, 0, 0], 0.0), ([0, 0, 1, 1, 1], 1.0), ([1, 1, 0, 0, 0], -2 / 3)):
        evaluate.reset(torch.device("cpu"))
        evaluate.update({"t": F.one_hot(torch.tensor(predictions), 2).float()}, {"t": targets}, rows=torch.arange(5))
        values = evaluate.compute()
        assert values["score"] == pytest.approx(score)  # (accuracy - 2/5) / (1 - 2/5)
    rows = evaluate.rows()
    assert [row["prediction"] for row in rows] == ["b", "b", "a", "a", "a"]
    assert [row["target"] for row in rows] == ["a", "a", "b", "b", "b"]


def test_splits_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(ValueError, match="no label in the val split"):
        evaluation(torch.tensor([-100, -100]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="Give the split varied labels"):
        evaluation(torch.tensor([0, 0]), torch.tensor([0, 0, 1]))


def test_a_limit_that_leaves_a_task_out_is_named() -> None:
    evaluate = evaluation(torch.tensor([0, 1]), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=r"No example of t was evaluated: .*limit_val_batches"):
        evaluate.compute()
