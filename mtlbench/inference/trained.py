"""A finished run as an object: predictions and features of new examples."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from omegaconf import DictConfig
from torch import Tensor

from mtlbench.assembly import head_options, make_network
from mtlbench.data.names import nearest
from mtlbench.data.span_targets import Context, find_contexts
from mtlbench.data.tables import InputSpec
from mtlbench.inference.answers import ANSWERS, Answer, Given
from mtlbench.inference.batches import batches, check_size
from mtlbench.inference.config import NETWORK, check_code, read_config
from mtlbench.inference.inputs import Made, check, form, tensors
from mtlbench.models.encoders.stages import First
from mtlbench.models.heads.base import Pooling, pool
from mtlbench.models.heads.generation import GenerationHead
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.models.sharing.hard import Hard
from mtlbench.saved import load_weights, read
from mtlbench.tasks import TASK_TYPES, Span, Task

log = logging.getLogger(__name__)


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
        found = [stage.longest for stage in model.modules() if isinstance(stage, First)]
        self._positions = found[0] if found else None  # all encoders are built alike

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
        try:
            model.eval().to(device)
        except (RuntimeError, AssertionError) as error:  # torch raises the one or the other
            raise ValueError(f"device {device!r} can't be used: {str(error).splitlines()[0]}") from error
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
            (generation). Of answers in a context (span), `text`, the `start` and `end` of its characters there ("" and
            twice None where there is no answer), and `probability`: its share among all that might have been chosen.
            For "all", a dict of these by task.

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
            batch_size: the most examples computed at once; fewer where they are very long.

        Returns:
            Task -> answer, for each example in turn; raises a ValueError where it comes to one that is no input.

        Raises:
            ValueError: a task predicts nothing, or the batch size is no number of examples.
        """
        for name in tasks:
            self._check_predicts(name)
        check_size(batch_size)
        return self._stream(batches(examples, batch_size), tasks)

    def _stream(self, batches: Iterable[list[tuple[str, Any]]], tasks: Sequence[str]) -> Iterator[dict[str, Answer]]:
        count, cut, first = 0, 0, ""
        for batch in batches:
            answers, beyond = self._answers(batch, tasks)
            if any(beyond):
                first = first or batch[beyond.index(True)][0]
                cut += sum(beyond)
            count += len(batch)
            yield from answers
        if cut:
            length = self.config.data.max_length
            log.warning("data.max_length=%d cuts %d of %d examples, the first of them %s.", length, cut, count, first)

    def _answers(
        self, batch: list[tuple[str, Any]], tasks: Sequence[str]
    ) -> tuple[list[dict[str, Answer]], list[bool]]:
        """For each example its answers by task, and whether it was cut."""
        found: list[dict[str, Answer]] = [{} for _ in batch]
        cut = [False for _ in batch]
        for spec, checked, names in self._by_input(batch, tasks):
            made = self._tensors(checked, spec, places=[place for place, _ in batch])
            cut = [before or now for before, now in zip(cut, made.cut, strict=True)]
            outputs = self._outputs(made.inputs, names)
            contexts: list[Context | None] = [None for _ in batch]
            if any(isinstance(self.tasks[name], Span) for name in names):
                length = self.config.data.max_length
                contexts = [*find_contexts(checked, tokenizer=spec.tokenizer, max_length=length)]
            for name in names:
                answer = ANSWERS[self.tasks[name].info.type]
                for row, output in enumerate(outputs[name]):
                    given = Given(made.starts[row], len(checked[row]), contexts[row], spec.tokenizer)
                    found[row][name] = answer(self.tasks[name], output, given)
        return [{name: answers[name] for name in tasks} for answers in found], cut

    def outputs(self, examples: Sequence[Any], *, task: str) -> Tensor:
        """(N, ...) of the task's head for all examples in one batch: logits, standardised numbers, or token ids."""
        spec = self.inputs[self.tasks[self.names(task)[0]].dataset]
        self._check_predicts(task)
        places, checked = _placed(examples, spec)
        return self._outputs(self._tensors(checked, spec, places=places).inputs, [task])[task]

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
        check_size(batch_size)
        if task is None:
            if not isinstance(self.model.sharing, Hard):
                raise ValueError(f"Each task has features of its own; name one: task={next(iter(self.tasks))!r}.")
            task = next(iter(self.tasks))
        spec = self.inputs[self.tasks[self.names(task)[0]].dataset]
        places, checked = _placed(examples, spec)
        features = [torch.empty(0, self.model.sharing.features)]
        for batch in batches(zip(places, checked, strict=True), batch_size):
            made = self._tensors([example for _, example in batch], spec, places=[place for place, _ in batch])
            state = self.model.sharing(self._moved(made.inputs), [task])[task]
            features.append(pool(state, pooling or self.config.head.pooling).cpu())
        return torch.cat(features)

    def names(self, task: str) -> list[str]:
        """The task itself, or every one that predicts something for "all".

        Raises:
            ValueError: there is no such task.
        """
        if task == "all" and "all" not in self.tasks:
            found = [name for name, task in self.tasks.items() if not task.masks]
            others = [name for name in self.tasks if name not in found]
            if found and others:
                log.warning("Left out, with nothing to predict: %s.", ", ".join(others))
            return found or others
        if task not in self.tasks:
            raise ValueError(f"The run has no task {task!r}. {nearest(task, [*self.tasks, 'all'])}")
        return [task]

    def nothing(self, task: str) -> str:
        """What is said of a task that predicts nothing."""
        return (
            f"Task {task!r} is of type {self.tasks[task].info.type}: an auxiliary task of training, with nothing to "
            "predict."
        )

    def _check_predicts(self, task: str) -> None:
        if self.tasks[task].masks:
            raise ValueError(self.nothing(task))

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

    def _tensors(self, checked: Sequence[Any], spec: InputSpec, *, places: Sequence[str]) -> Made:
        length = self.config.data.max_length
        return tensors(checked, spec, places=places, max_length=length, positions=self._positions)

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


def _placed(examples: Sequence[Any], spec: InputSpec) -> tuple[list[str], list[Any]]:
    """How errors call the examples, and these, checked."""
    places = [f"example {n}" for n in range(1, len(examples) + 1)]
    return places, [check(example, spec, place=place) for place, example in zip(places, examples, strict=True)]
