"""A finished run as an object: predictions and features of new examples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from omegaconf import DictConfig
from torch import Tensor

from mtlbench.data.names import nearest
from mtlbench.data.tables import InputSpec
from mtlbench.inference.answers import ANSWERS, Answer, Given
from mtlbench.inference.config import NETWORK, check_code, read_config
from mtlbench.inference.inputs import check, form, tensors
from mtlbench.models.heads.base import Pooling, pool
from mtlbench.models.heads.generation import GenerationHead
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.models.sharing.hard import Hard
from mtlbench.saved import load_weights, read
from mtlbench.tasks import TASK_TYPES, Task
from mtlbench.train import head_options, make_network


class TrainedModel:
    """The selected weights of a finished run, with all that predictions need. Made by `from_run`.

    Attributes:
        model: the network, in evaluation mode.
        tasks: by name, in the order of training.
        inputs: dataset -> what its inputs look like.
        config: of the run.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        *,
        tasks: Mapping[str, Task],
        inputs: Mapping[str, InputSpec],
        config: DictConfig,
        device: torch.device,
    ) -> None:
        self.model, self.tasks, self.inputs, self.config, self.device = model, tasks, inputs, config, device

    @classmethod
    def from_run(cls, run_dir: str | Path, *, device: str = "cpu", trust_code: bool = False) -> Self:
        """Loads a run. Tensors and JSON are read, and no data.

        Args:
            run_dir: of a finished run.
            device: where the network computes, by torch's name.
            trust_code: whether the run's config may name encoders and sharings from outside mtlbench.

        Raises:
            ValueError: the directory holds no finished run, or its config names foreign code.
        """
        run_dir = Path(run_dir)
        cfg = read_config(run_dir)
        check_code(cfg, groups=NETWORK, trust_code=trust_code)
        saved = read(run_dir)
        tasks = {
            name: TASK_TYPES[info.type].restored(info, saved.constants[name], head_options=head_options(cfg, name))
            for name, info in saved.tasks.items()
        }
        model = make_network(cfg, list(tasks.values()), saved.inputs)
        load_weights(model, run_dir)
        model.eval().to(device)
        return cls(model, tasks=tasks, inputs=saved.inputs, config=cfg, device=torch.device(device))

    def predict(self, examples: Sequence[Any], *, task: str, batch_size: int = 64) -> list[Any]:
        """Predictions in the order of the examples.

        Args:
            examples: texts (for a model of words also lists of them), pairs of texts, arrays, or mappings with the
                dataset's columns.
            task: its name, or "all".
            batch_size: examples computed at once.

        Returns:
            One dict for each example: `label` and `probabilities` (classification), `labels` and `probabilities`
            (multilabel), `value` (regression), `tags` and `probabilities`, one for each word (tagging), `text`
            (generation). For "all", a dict of these by task.

        Raises:
            ValueError: there is no such task, or an example is no input of the model.
        """
        if isinstance(examples, str):
            raise ValueError("predict takes a list of examples, got one text: predict([text], ...).")
        placed = ((f"example {n}", example) for n, example in enumerate(examples, 1))
        found = self.stream(placed, tasks=self.names(task), batch_size=batch_size)
        return list(found) if task == "all" else [answers[task] for answers in found]

    def stream(
        self, examples: Iterable[tuple[str, Any]], *, tasks: Sequence[str], batch_size: int = 64
    ) -> Iterator[dict[str, Answer]]:
        """The same lazily, for several tasks: the encoder runs once for all that read the same form of input.

        Args:
            examples: how errors call it, and the example as in `predict`.
            tasks: names.
            batch_size: examples computed at once.

        Yields:
            Task -> answer, for each example in turn.
        """
        for name in tasks:
            if self.tasks[name].info.type not in ANSWERS:
                raise ValueError(f"Task {name!r} is of type {self.tasks[name].info.type}, which can't be predicted.")
        waiting = iter(examples)
        while batch := list(itertools.islice(waiting, batch_size)):
            yield from self._answers(batch, tasks)

    def _answers(self, batch: list[tuple[str, Any]], tasks: Sequence[str]) -> list[dict[str, Answer]]:
        found: list[dict[str, Answer]] = [{} for _ in batch]
        for spec, checked, names in self._by_input(batch, tasks):
            inputs, words = tensors(checked, spec, max_length=self.config.data.max_length)
            outputs = self._outputs(inputs, names)
            for name in names:
                answer = ANSWERS[self.tasks[name].info.type]
                for row, output in enumerate(outputs[name]):
                    given = Given(words[row], len(checked[row]), spec.tokenizer)
                    found[row][name] = answer(self.tasks[name], output, given)
        return [{name: answers[name] for name in tasks} for answers in found]

    def outputs(self, examples: Sequence[Any], *, task: str) -> Tensor:
        """(N, ...) of the task's head for all examples in one batch: logits, standardised numbers, or token ids."""
        spec = self.inputs[self.tasks[self.names(task)[0]].dataset]
        checked = [check(example, spec, place=f"example {n}") for n, example in enumerate(examples, 1)]
        inputs, _ = tensors(checked, spec, max_length=self.config.data.max_length)
        return self._outputs(inputs, [task])[task]

    @torch.no_grad()
    def encode(
        self, examples: Sequence[Any], *, task: str | None = None, pooling: Pooling | None = None, batch_size: int = 64
    ) -> Tensor:
        """(N, D) features.

        Args:
            examples: as in `predict`.
            task: whose features; needed unless all tasks share one encoder. It also decides how texts are read.
            pooling: how token features become one vector; None: as the config's `head.pooling`.
            batch_size: examples computed at once.

        Raises:
            ValueError: the tasks have different features and none is named.
        """
        if task is None:
            if not isinstance(self.model.sharing, Hard):
                raise ValueError(f"Each task has features of its own; name one: task={next(iter(self.tasks))!r}.")
            task = next(iter(self.tasks))
        spec = self.inputs[self.tasks[self.names(task)[0]].dataset]
        checked = [check(example, spec, place=f"example {n}") for n, example in enumerate(examples, 1)]
        features = [torch.empty(0, self.model.sharing.features)]
        for start in range(0, len(checked), batch_size):
            inputs, _ = tensors(checked[start : start + batch_size], spec, max_length=self.config.data.max_length)
            state = self.model.sharing(self._moved(inputs), [task])[task]
            features.append(pool(state, pooling or self.config.head.pooling).cpu())
        return torch.cat(features)

    def names(self, task: str) -> list[str]:
        """The task itself, or every one for "all".

        Raises:
            ValueError: there is no such task.
        """
        if task == "all" and "all" not in self.tasks:
            return list(self.tasks)
        if task not in self.tasks:
            raise ValueError(f"The run has no task {task!r}. {nearest(task, [*self.tasks, 'all'])}")
        return [task]

    def _by_input(
        self, batch: Sequence[tuple[str, Any]], tasks: Sequence[str]
    ) -> list[tuple[InputSpec, list[Any], list[str]]]:
        """The tasks by what they read: spec, checked examples, names."""
        groups: list[tuple[InputSpec, list[Any], list[str]]] = []
        for dataset in dict.fromkeys(self.tasks[name].dataset for name in tasks):
            spec = self.inputs[dataset]
            checked = [check(example, spec, place=place) for place, example in batch]
            names = [name for name in tasks if self.tasks[name].dataset == dataset]
            for other, theirs, group in groups:
                # Numbers of one form come from the same columns; texts may come from columns of other names.
                if form(other) == form(spec) and (spec.type != "text" or theirs == checked):
                    group += names
                    break
            else:
                groups.append((spec, checked, names))
        return groups

    @torch.no_grad()
    def _outputs(self, inputs: dict[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        states = self.model.sharing(self._moved(inputs), tasks)
        outputs = {}
        for name in tasks:
            head = self.model.heads[name]
            found = head.generate(states[name]) if isinstance(head, GenerationHead) else head(states[name]).float()
            outputs[name] = found.cpu()
        return outputs

    def _moved(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}
