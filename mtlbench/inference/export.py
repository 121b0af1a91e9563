"""One task of a run as a folder that plain transformers loads, with the same outputs.

The library's classes have heads of their own. Those for tokens are linear, as ours are by default. Those for sequences
have one hidden layer as wide as the encoder, on the first token, with an activation that depends on the architecture;
a head trained with these options has the same form, and its weights are copied.
"""

from __future__ import annotations

import copy
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from mtlbench.data.names import nearest
from mtlbench.inference.trained import TrainedModel
from mtlbench.models.encoders.base import Encoder
from mtlbench.models.encoders.stages import Block, Embeddings
from mtlbench.models.sharing.hard import Hard
from mtlbench.models.sharing.independent import Independent
from mtlbench.results.records import read_summary
from mtlbench.tasks import Task
from mtlbench.tasks.regression import Regression


@dataclass(frozen=True)
class LibraryHead:
    """Where the library's model for sequences has its two layers, and what is between them."""

    hidden: str
    activation: str
    output: str


_ROBERTA = LibraryHead("classifier.dense", "tanh", "classifier.out_proj")
SEQUENCE = {
    "bert": LibraryHead("bert.pooler.dense", "tanh", "classifier"),
    "distilbert": LibraryHead("pre_classifier", "relu", "classifier"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": LibraryHead("classifier.dense", "gelu", "classifier.out_proj"),
}
PROBLEMS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


def export(run_dir: Path, *, task: str, out: Path, trust_code: bool = False) -> Path:
    """Writes config, weights (safetensors), tokenizer and a model card.

    Classification, multi-label and regression become `AutoModelForSequenceClassification`, regression in the
    target's own units; tagging becomes `AutoModelForTokenClassification`.

    Args:
        run_dir: of a finished run.
        task: its name.
        out: the folder; made, or empty.
        trust_code: see `TrainedModel.from_run`.

    Returns:
        The folder.

    Raises:
        ValueError: there is no such task, the folder is not empty, or the library has no class of the same form; says
            what has.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and is not empty; name a new folder.")
    trained = TrainedModel.from_run(run_dir, trust_code=trust_code)
    if task not in trained.tasks:
        raise ValueError(f"The run has no task {task!r}. {nearest(task, trained.tasks)}")
    made, head, encoder = trained.tasks[task], trained.model.heads[task], _encoder(trained, task)
    config = _config(encoder, made)
    make = _token_model if made.info.type == "tagging" else _sequence_model
    model = make(made, head, config)
    _copy_encoder(encoder, model)
    model.eval()
    _verify(model, trained, task)
    model.save_pretrained(out)
    tokenizer = copy.deepcopy(trained.inputs[made.dataset].tokenizer)
    if trained.config.data.max_length is not None:
        tokenizer.model_max_length = trained.config.data.max_length  # for truncation=True
    if not _tells_types_apart(config):
        tokenizer.model_input_names = [n for n in tokenizer.model_input_names if n != "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # else it is not saved
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(_card(trained, made, read_summary(run_dir), type(model).__name__), encoding="utf-8")
    return out


def _encoder(trained: TrainedModel, task: str) -> Encoder:
    """The task's own or the common encoder, one of those that the library has models with a head for."""
    sharing = trained.model.sharing
    if isinstance(sharing, Hard):
        encoder: Encoder = sharing.encoder
    elif isinstance(sharing, Independent):
        encoder = sharing.encoders[task]  # type: ignore[assignment]
    else:
        raise ValueError(f"With {type(sharing).__name__} sharing a task has no encoder of its own to export.")
    kind = encoder.config.model_type if encoder.config is not None else type(encoder).__name__
    if kind not in SEQUENCE:
        raise ValueError(f"Encoders of type {kind} can't be exported; these can: {', '.join(SEQUENCE)}.")
    if any("lora_" in name for name, _ in encoder.named_parameters()):
        raise ValueError("An encoder with LoRA adapters can't be exported: train it without encoder.lora.")
    return encoder


def _config(encoder: Encoder, task: Task) -> PretrainedConfig:
    config = copy.deepcopy(encoder.config)
    labels = task.info.labels or (task.name,)
    config.id2label = dict(enumerate(labels))  # sets num_labels too
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = PROBLEMS.get(task.info.type)
    dropout = float(task.head_options["dropout"])
    if config.model_type == "distilbert" and task.info.type != "tagging":
        config.seq_classif_dropout = dropout
    else:
        config.classifier_dropout = dropout
    return config


def _token_model(task: Task, head: nn.Module, config: PretrainedConfig) -> PreTrainedModel:
    if task.head_options["hidden"]:
        raise ValueError(
            f"Task {task.name!r}: the library's heads for tokens are linear, and this one has hidden layers "
            f"({list(task.head_options['hidden'])}). Train with head.hidden=[]."
        )
    model = AutoModelForTokenClassification.from_config(config)
    model.classifier.load_state_dict(_linears(head)[0].state_dict())
    return model


def _sequence_model(task: Task, head: nn.Module, config: PretrainedConfig) -> PreTrainedModel:
    if task.info.type not in PROBLEMS:
        raise ValueError(
            f"Task {task.name!r} is of type {task.info.type}; these can be exported: {', '.join(PROBLEMS)}, tagging."
        )
    library = SEQUENCE[config.model_type]
    wanted = {"pooling": "first", "hidden": [config.hidden_size], "activation": library.activation}
    given = {key: task.head_options[key] for key in wanted}
    if given != wanted:
        options = ", ".join(f"{key}: {value}" for key, value in wanted.items())
        raise ValueError(
            f"Task {task.name!r}: the library's head for {config.model_type} has one hidden layer of "
            f"{config.hidden_size}, {library.activation}, on the first token; this head is another function ("
            f"{', '.join(f'{key}: {value}' for key, value in given.items())}). Train with "
            f"'+benchmark.tasks.{task.name}.head={{{options}}}'."
        )
    model = AutoModelForSequenceClassification.from_config(config)
    hidden, output = _linears(head)
    model.get_submodule(library.hidden).load_state_dict(hidden.state_dict())
    state = {name: value.double() for name, value in output.state_dict().items()}
    if isinstance(task, Regression):
        state = {"weight": state["weight"] * task.std, "bias": state["bias"] * task.std + task.mean}
    model.get_submodule(library.output).load_state_dict(state)
    return model


def _linears(head: nn.Module) -> list[nn.Linear]:
    return [module for module in head.modules() if isinstance(module, nn.Linear)]


def _copy_encoder(encoder: Encoder, model: PreTrainedModel) -> None:
    base = model.base_model
    first, *others = encoder.stages
    assert isinstance(first, Embeddings)
    base.embeddings.load_state_dict(first.embeddings.state_dict())
    if first.project is not None:
        base.embeddings_project.load_state_dict(first.project.state_dict())
    layers = base.transformer.layer if model.config.model_type == "distilbert" else base.encoder.layer
    for layer, stage in zip(layers, others, strict=True):
        assert isinstance(stage, Block)
        layer.load_state_dict(stage.block.state_dict())


def _tells_types_apart(config: PretrainedConfig) -> bool:
    return config.to_dict().get("type_vocab_size", 0) > 1


@torch.no_grad()
def _verify(model: PreTrainedModel, trained: TrainedModel, task: str) -> None:
    """Compares on random tokens, so that no other function than the trained one is ever written."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, trained.inputs[trained.tasks[task].dataset].vocab_size or 6, (4, 12), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    ours: Tensor = trained.model.heads[task](trained.model.sharing(inputs, [task])[task])
    if isinstance(made := trained.tasks[task], Regression):
        ours = made.predict(ours)[:, None]
    theirs = model(**inputs).logits
    scale = max(1.0, float(ours.abs().max()))
    if not torch.allclose(ours, theirs, rtol=0, atol=1e-4 * scale):
        raise ValueError(
            f"The exported model differs from the trained one by {float((ours - theirs).abs().max()):.1e}: this "
            "version of transformers computes something else. Please report it."
        )


def _card(trained: TrainedModel, task: Task, summary: dict[str, Any], cls: str) -> str:
    pipeline = "token-classification" if task.info.type == "tagging" else "text-classification"
    spec = trained.inputs[task.dataset]
    metrics = {name: value for name, value in summary.get("test", {}).items() if name.startswith(f"{task.name}/")}
    rows = [f"| {name.split('/', 1)[1]} | {value:.4f} |" for name, value in metrics.items() if value is not None]
    others = [name for name in trained.tasks if name != task.name]
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    together = f"trained together with {', '.join(others)}" if others else "trained alone"
    if isinstance(trained.model.sharing, Independent):
        together = "trained with an encoder of its own"
    text = 'tokenizer(["a", "text", "in", "words"], is_split_into_words=True' if spec.words else 'tokenizer("a text"'
    text = 'tokenizer("a text", "and its pair"' if len(spec.columns) == 2 else text
    return f"""---
library_name: transformers
pipeline_tag: {pipeline}
tags: [mtlbench, multi-task-learning]
---

# {task.name} ({summary["benchmark"]})

A `{cls}`: the task **{task.name}** ({task.info.type}) of a run of mtlbench, {together}.

```python
from transformers import AutoTokenizer, {_auto(cls)}

tokenizer, model = AutoTokenizer.from_pretrained("."), {_auto(cls)}.from_pretrained(".")
logits = model(**{text}, return_tensors="pt")).logits
```

## Data

Benchmark `{summary["benchmark"]}`, dataset `{task.dataset}`, input {" and ".join(f"`{c}`" for c in spec.columns)}.
Outputs: {json.dumps(list(task.info.labels), ensure_ascii=False) if task.info.labels else "one number"}.

## Metrics

On the test split, with the weights that were selected on the validation split:

| metric | value |
|---|---|
{chr(10).join(rows) or "| (not tested) | |"}

## Training

```bash
{shlex.join(["mtlbench", "train", *summary["overrides"]])}
```

Method `{summary["method"]}`, seed {summary["seed"]}, configuration {summary["config_hash"]}. Versions: {versions}.
"""


def _auto(cls: str) -> str:
    return f"AutoModelFor{cls.partition('For')[2]}"
