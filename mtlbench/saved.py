"""What a run leaves so that it can be used again: weights, tasks and inputs, tokenizer, the encoder's config.

`model.safetensors` (the selected weights), `model.json`, `tokenizer/` and `encoder/`: tensors and JSON, so that reading
them runs no code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor

from mtlbench.data.tables import InputSpec, TaskInfo
from mtlbench.models.encoders.base import Encoder
from mtlbench.models.multitask import MultiTaskModel
from mtlbench.tasks import Task

FORMAT = 2
WEIGHTS, MODEL, TOKENIZER, ENCODER = "model.safetensors", "model.json", "tokenizer", "encoder"


@dataclass(frozen=True)
class Saved:
    """What `model.json` says.

    Attributes:
        inputs: dataset -> what its inputs look like, with the saved tokenizer where they are text.
        tasks: name -> what the data said of it, in the order of training.
        constants: task -> what `Task.restored` takes.
    """

    inputs: dict[str, InputSpec]
    tasks: dict[str, TaskInfo]
    constants: dict[str, dict[str, Any]]


def save(
    run_dir: Path,
    model: MultiTaskModel,
    *,
    weights: Mapping[str, Tensor],
    tasks: Sequence[Task],
    inputs: Mapping[str, InputSpec],
) -> None:
    """Writes the model's files into the run directory; `weights` are its whole state, of which it may have parts."""
    whole: Any = SimpleNamespace(state_dict=lambda: dict(weights))  # what `save_model`, which knows of ties, looks at
    save_model(whole, str(run_dir / WEIGHTS))
    for module in model.modules():
        if isinstance(module, Encoder) and module.config is not None:
            module.config.save_pretrained(run_dir / ENCODER)
            break  # all are built alike
    described = {}
    for dataset, spec in inputs.items():
        if spec.tokenizer is not None:
            spec.tokenizer.save_pretrained(run_dir / TOKENIZER)  # one encoder has one tokenizer
        described[dataset] = dataclasses.asdict(dataclasses.replace(spec, tokenizer=None))
        del described[dataset]["tokenizer"]
    content = {
        "format": FORMAT,
        "inputs": described,
        "tasks": [{**dataclasses.asdict(task.info), "constants": task.constants()} for task in tasks],
    }
    (run_dir / MODEL).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_weights(model: MultiTaskModel, run_dir: Path) -> None:
    """Puts the saved weights into a network of the same shape.

    Raises:
        ValueError: they do not fit, or there are none.
    """
    path = run_dir / WEIGHTS
    if not path.exists():
        raise ValueError(f"{run_dir} holds no {WEIGHTS}, which a finished run has.")
    try:
        load_model(model, str(path))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not fit the network of {run_dir / 'config.yaml'}: {error}") from error


def read(run_dir: Path) -> Saved:
    """Reads `model.json` and the tokenizer.

    Raises:
        ValueError: there is no such file, or it is broken or of another format.
    """
    path = run_dir / MODEL
    if not path.exists():
        raise ValueError(
            f"{run_dir} holds no {MODEL}: it is no finished run, or one of an older version. Name the directory that "
            "also holds summary.json, or train again."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} has format {content.get('format')!r}; this version of mtlbench reads {FORMAT}.")
    tokenizer = None
    if (run_dir / TOKENIZER).exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(run_dir / TOKENIZER, trust_remote_code=False)
    inputs = {
        dataset: InputSpec(**_tuples(given), tokenizer=tokenizer if given["type"] == "text" else None)
        for dataset, given in content["inputs"].items()
    }
    constants = {given["name"]: given.pop("constants") for given in content["tasks"]}
    tasks = {given["name"]: TaskInfo(**_tuples(given)) for given in content["tasks"]}
    return Saved(inputs=inputs, tasks=tasks, constants=constants)


def _tuples(given: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
