"""Shared modules of many kinds with an input each: what the routes to task gradients must all be right for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

Make = Callable[[], tuple[nn.Module, Tensor]]


class Net(nn.Module):
    """A shared module given as a function of its layers."""

    def __init__(self, layers: dict[str, Any], run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def images(channels: int, *size: int) -> Tensor:
    return torch.randn(6, channels, *size, dtype=torch.float64)


def words(vocabulary: int = 11, length: int = 5) -> Tensor:
    return torch.randint(0, vocabulary, (6, length))  # of 30 tokens from 11 words some come again


def linear() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 35, bias=False), nn.ReLU()), images(40)


def sequences() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(40, 50), nn.GELU(), nn.LayerNorm(50), nn.Linear(50, 60)), images(2, 40)


def conv1d() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(4, 5, 2, dilation=2))
    return net, images(3, 16)


def conv2d() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding="same", groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, dilation=2, bias=False),
        nn.ConvTranspose2d(8, 3, 2),
        nn.Flatten(),
        nn.Linear(75, 40),
    )
    return net, images(4, 11, 11)


def batch_norm() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 40), nn.BatchNorm1d(40))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval(), images(2, 5, 5)


def embedding() -> tuple[nn.Module, Tensor]:
    layers = {
        "tokens": nn.Embedding(11, 40, padding_idx=3),
        "places": nn.Embedding(9, 40),
        "dense": nn.Linear(40, 40),
    }
    return Net(layers, lambda m, x: m.dense(m.tokens(x) + m.places(torch.arange(5)[None])).mean(1)), words()


def large_embedding() -> tuple[nn.Module, Tensor]:
    layers = {"tokens": nn.Embedding(500, 40, padding_idx=3), "dense": nn.Linear(40, 30)}
    return Net(layers, lambda m, x: m.dense(m.tokens(x) + m.tokens(x.flip(1) + 3)).mean(1)), words()


def called_twice() -> tuple[nn.Module, Tensor]:
    layers = {"inner": nn.Linear(40, 40), "last": nn.Linear(40, 30)}
    return Net(layers, lambda m, x: m.last(m.inner(m.inner(x).tanh()))), images(40)


def tied() -> tuple[nn.Module, Tensor]:
    layers = {"tokens": nn.Embedding(50, 40), "dense": nn.Linear(40, 40)}
    return Net(layers, lambda m, x: F.linear(m.dense(m.tokens(x)).mean(1), m.tokens.weight)), words()


def functional() -> tuple[nn.Module, Tensor]:
    """A weight used by its layer and beside it, a transposed one, a bare parameter, an alpha."""
    layers = {
        "dense": nn.Linear(40, 40),
        "other": nn.Linear(40, 40),
        "bare": nn.Parameter(torch.randn(40)),
        "scaled": nn.Parameter(torch.randn(40, 30)),
        "offset": nn.Parameter(torch.randn(30)),
    }

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.dense(x).tanh() * m.bare + x @ m.dense.weight
        x = m.other(x) + m.other.bias.square()
        return torch.addmm(m.offset, x, m.scaled, beta=0.5, alpha=2.0)

    return Net(layers, run), images(40)


def unknown() -> tuple[nn.Module, Tensor]:
    attention = nn.MultiheadAttention(40, 4, batch_first=True)
    parts = nn.utils.parametrizations.weight_norm(nn.Linear(6, 7))
    layers = {"attention": attention, "mix": nn.Bilinear(40, 40, 6), "parts": parts}

    def run(m: Any, x: Tensor) -> Tensor:
        attended: Tensor = m.attention(x, x, x, need_weights=False)[0]
        mixed: Tensor = m.parts(m.mix(attended.mean(1), x[:, 0]))
        return mixed

    return Net(layers, run), images(3, 40)


def bert() -> tuple[nn.Module, Tensor]:
    config = BertConfig(
        vocab_size=200,
        hidden_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    layers = {"bert": BertModel(config, add_pooling_layer=False)}
    return Net(layers, lambda m, x: m.bert(x, attention_mask=torch.ones_like(x)).last_hidden_state[:, 0]), words(200)


def gpt2() -> tuple[nn.Module, Tensor]:
    config = GPT2Config(vocab_size=200, n_positions=16, n_embd=40, n_layer=2, n_head=4)
    layers = {"gpt": GPT2Model(config)}
    return Net(layers, lambda m, x: m.gpt(x).last_hidden_state[:, -1]), words(200)
