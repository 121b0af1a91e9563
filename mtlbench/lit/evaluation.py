"""Metrics, scores and predictions of one split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.text import Perplexity

from mtlbench.data.tables import Split
from mtlbench.tasks import Task


class Seen(NamedTuple):
    """What one batch showed of one task, on the CPU.

    Attributes:
        loss: mean over the labelled elements.
        elements: how many those are.
        rows: where the examples stand in the split; of tasks whose predictions are texts, those with a text.
        predicted, target: (B, ...); None where predictions are texts.
        texts: those.
    """

    loss: float
    elements: float
    rows: list[int]
    predicted: Tensor | None = None
    target: Tensor | None = None
    texts: Sequence[str] = ()


class Evaluation:
    """Accumulates one pass over a split.

    Several ranks share the batches. Metrics are fed at the end, with the batches of all ranks in the order in which one
    rank alone would have had them, so that every rank gets the values of that one to the bit.

    The score is the mean over tasks of the primary metric, rescaled so that the trivial predictor (the
    training split's majority class or mean) is 0 and a perfect one is 1.

    Args:
        tasks: by name.
        splits: the split of each dataset.
        joint: for each metric over several tasks its name and the tasks that must all be right.
        split: the split's name. In "val", texts are generated for each task's first `generate_examples` rows alone.
        tokenizers: dataset -> what turns the token ids of generated texts into texts.

    Raises:
        ValueError: a task has no label in the split, the trivial predictor is perfect on it, or a joint metric names
            a task whose predictions are texts.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        splits: Mapping[str, Split],
        joint: Mapping[str, Sequence[str]],
        *,
        split: str,
        tokenizers: Mapping[str, Any] | None = None,
    ) -> None:
        self.tasks, self.joint, self.tokenizers = tasks, joint, dict(tokenizers or {})
        self.limits = {name: task.generate_examples if split == "val" else None for name, task in tasks.items()}
        for name in {member for members in joint.values() for member in members}:
            if tasks[name].reads_text:
                raise ValueError(f"Task {name!r} predicts texts: it can't be part of a metric over several tasks.")
        self.metrics: dict[str, dict[str, Metric]] = {name: task.metrics() for name, task in tasks.items()}
        self.together = {name: MeanMetric() for name in joint}
        for metric in self._all():
            if not isinstance(metric, Perplexity):  # which is fed with logits, too many to be handed around
                metric.distributed_available_fn = _never
        self.trivial: dict[str, float] = {}
        targets_of = {dataset: whole(rows) for dataset, rows in splits.items()}
        for name, task in tasks.items():
            targets = targets_of[task.dataset][name]
            if not bool(task.labelled(targets).any()):
                raise ValueError(f"Task {name!r} has no label in the {split} split of dataset {task.dataset!r}.")
            truth: Any = targets
            if task.reads_text:
                truth = splits[task.dataset].references[name][: self.limits[name]]
                if all(reference is None for reference in truth):
                    raise ValueError(f"Task {name!r}: none of the first {len(truth)} rows of {split} has a label.")
            task.update(self.metrics[name], task.trivial(truth), truth)
            self.trivial[name] = float(self.metrics[name][task.primary].compute())
            known = targets[task.labelled(targets)] if task.primary in task.needs_variety else None
            alike = known is not None and bool((known == known[0]).all())
            if alike or self.trivial[name] == task.perfect[task.primary]:
                raise ValueError(
                    f"Task {name!r}: always predicting the majority (or mean) is perfect on the {split} split of "
                    f"{task.dataset!r}, so its score can't be told from a trivial one. Give the split varied labels."
                )
        self._references = {dataset: rows.references for dataset, rows in splits.items()}
        self.reset(torch.device("cpu"))

    def _all(self) -> Iterator[Metric]:
        return chain(self.together.values(), *(metrics.values() for metrics in self.metrics.values()))

    def reset(self, device: torch.device) -> None:
        for metric in self._all():
            metric.reset()
            metric.to(device if isinstance(metric, Perplexity) else "cpu")
        self._seen: list[dict[str, Seen]] = []  # of this rank's batches
        self._batches: list[dict[str, Seen]] = []  # of all ranks', in order

    def wanted(self, name: str, rows: Tensor) -> Tensor:
        """Bool mask of the rows for which a task's texts are evaluated."""
        limit = self.limits[name]
        return torch.ones_like(rows, dtype=torch.bool) if limit is None else rows < limit

    @torch.no_grad()
    def update(
        self,
        outputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        *,
        rows: Tensor,
        generated: Mapping[str, Tensor] | None = None,
    ) -> None:
        """One batch of one dataset.

        Args:
            outputs: of the heads, by task.
            targets: by task.
            rows: (B,) where the examples stand in the split.
            generated: (B', L) token ids by task that generates, for the rows `wanted` of it.
        """
        seen: dict[str, Seen] = {}
        for name, target in targets.items():
            task = self.tasks[name]
            output = outputs[name].float()
            loss, count = task.loss(output, task.encode(target))
            task.update_outputs(self.metrics[name], output, target)
            if task.reads_text:
                found = (generated or {}).get(name) if task.generates else task.predict(output)
                places = [] if found is None else rows[self.wanted(name, rows)].tolist()
                seen[name] = Seen(float(loss), float(count), places, texts=self._texts(name, found, places))
            else:
                predicted = task.predictions(output, target).cpu()
                seen[name] = Seen(float(loss), float(count), rows.tolist(), predicted, target.cpu())
        self._seen.append(seen)

    def _texts(self, name: str, predicted: Tensor | None, places: Sequence[int]) -> list[str]:
        if predicted is None or not places:
            return []
        task = self.tasks[name]
        return task.texts(predicted, self._references_of(name, places), self.tokenizers.get(task.dataset))

    def _references_of(self, name: str, places: Sequence[int]) -> list[Any]:
        references = self._references[self.tasks[name].dataset][name]
        return [references[place] for place in places]

    def compute(self) -> dict[str, float]:
        """`{task}/{metric}`, `{dataset}/{joint metric}`, `loss/{task}` and `score`; called by all ranks.

        Raises:
            ValueError: a task was not evaluated at all.
        """
        self._batches, self._seen = _of_all_ranks(self._seen), []
        sums = {name: [0.0, 0.0] for name in self.tasks}
        for batch in self._batches:
            self._feed(batch)
            for name, seen in batch.items():
                if seen.elements > 0:
                    sums[name][0] += seen.loss * seen.elements
                    sums[name][1] += seen.elements
        unseen = [name for name, (_, count) in sums.items() if not count]
        if unseen:
            raise ValueError(
                f"No example of {', '.join(unseen)} was evaluated: datasets are passed one after another, and "
                "trainer.limit_val_batches or limit_test_batches ends before theirs. Raise the limit, or leave it out."
            )
        values: dict[str, float] = {}
        scores = []
        for name, task in self.tasks.items():
            for key, metric in self.metrics[name].items():
                values[f"{name}/{key}"] = float(metric.compute())
            values[f"loss/{name}"] = sums[name][0] / sums[name][1]
            trivial, perfect = self.trivial[name], task.perfect[task.primary]
            scores.append((values[f"{name}/{task.primary}"] - trivial) / (perfect - trivial))
        for name, members in self.joint.items():
            values[f"{self.tasks[members[0]].dataset}/{name}"] = float(self.together[name].compute())
        return values | {"score": sum(scores) / len(scores)}

    def _feed(self, batch: Mapping[str, Seen]) -> None:
        """Gives one batch to the metrics."""
        right: dict[str, Tensor] = {}
        for name, seen in batch.items():
            task = self.tasks[name]
            if seen.predicted is None or seen.target is None:
                if seen.rows:
                    task.update(self.metrics[name], seen.texts, self._references_of(name, seen.rows))
            else:
                task.update(self.metrics[name], seen.predicted, seen.target)
                right[name] = task.correct(seen.predicted, seen.target)
        for name, members in self.joint.items():
            if members[0] in right:
                self.together[name].update(torch.stack([right[m] for m in members]).all(0).float())

    def rows(self) -> list[dict[str, Any]]:
        """Predictions as `compute` has met them, by task: one row for each example with a label, in label names."""
        return [
            {"dataset": task.dataset, "row": row, "task": name, "target": target, "prediction": prediction}
            for name, task in self.tasks.items()
            for batch in self._batches
            if name in batch
            for row, target, prediction in self._labelled(name, batch[name])
        ]

    def _labelled(self, name: str, seen: Seen) -> Iterator[tuple[int, Any, Any]]:
        """Row, target and prediction of the examples with a label."""
        task = self.tasks[name]
        if seen.predicted is None or seen.target is None:
            for row, target, text in zip(seen.rows, self._references_of(name, seen.rows), seen.texts, strict=True):
                if target is not None:
                    yield row, task.readable(target), text
            return
        known = task.labelled(seen.target)
        for i in known.reshape(len(known), -1).any(1).nonzero().flatten().tolist():
            yield seen.rows[i], task.readable(seen.target[i], known[i]), task.readable(seen.predicted[i], known[i])


def _of_all_ranks(own: list[dict[str, Seen]]) -> list[dict[str, Seen]]:
    """The ranks' batches in turn, as `evaluation_loader` dealt them out."""
    if not (dist.is_available() and dist.is_initialized()):
        return own
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return [batch for turn in zip_longest(*found) for batch in turn if batch is not None]


def _never() -> bool:
    """Whether a metric sums over ranks: it has seen the batches of all."""
    return False


def whole(split: Split) -> dict[str, Tensor]:
    """All targets of a split by task, padded where they are sequences."""
    return split.batch(torch.arange(len(split)))["targets"]
