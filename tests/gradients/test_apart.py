"""Tasks with rows of their own go by one backward only where the graph keeps the rows apart, and are right anyway."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from mtlbench.gradients import routes as routes_module
from mtlbench.gradients.apart import RULES
from tests.gradients.nets import Make, Net, images, words
from tests.gradients.test_routes import Setting, equal

WIDTH = 32
SIZES = {
    "vocab_size": 100, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
DEBERTA = {
    "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
}  # fmt: skip


def layers(run: Callable[[Any, Tensor], Tensor], *shape: int, **more: nn.Module) -> Make:
    """A net that runs so, with the layers `first` and `last` and others, on numbers (6, ...)."""

    def make() -> tuple[nn.Module, Tensor]:
        return Net({"first": nn.Linear(8, 8), "last": nn.Linear(8, 8), **more}, run), images(*shape)

    return make


def encoder(kind: str, *, batch: int = 6, attention: str = "sdpa", **options: Any) -> Make:
    """One of transformers' encoders, on words of which some are padding."""

    def make() -> tuple[nn.Module, Tensor]:
        config = transformers.AutoConfig.for_model(kind, **SIZES | options)
        model = transformers.AutoModel.from_config(config, attn_implementation=attention)
        model = model.encoder if kind in ("t5", "bart") else model
        x = torch.randint(3, 100, (batch, 5))
        x[::2, -1] = 0
        return Net({"model": model}, lambda m, x: m.model(x, attention_mask=(x != 0).long()).last_hidden_state[:, 0]), x

    return make


def chunked(m: Any, x: Tensor) -> Tensor:
    one, other = m.last(torch.cat([m.first(x), m.first(x).flip(1)])).relu().chunk(2)
    return one * other


def steps_first(m: Any, x: Tensor) -> Tensor:
    x = m.first(x).transpose(0, 1)
    return m.encoder(x).transpose(0, 1).flatten(1)


def contiguous(m: Any, x: Tensor) -> Tensor:
    x = m.first(x).transpose(0, 1).contiguous()
    return m.norm(m.last(x)).mean(0)


MIXING: dict[str, Make] = {
    "deberta 6": encoder("deberta-v2", attention="eager", **DEBERTA),
    "deberta 16": encoder("deberta-v2", attention="eager", batch=16, **DEBERTA),
    "t5": encoder("t5", d_model=WIDTH, d_kv=8, num_layers=1, d_ff=32, num_heads=2, attention="eager"),
    "steps first": layers(steps_first, 3, 8, encoder=nn.TransformerEncoderLayer(8, 2, 8, dropout=0)),
    "steps first, in one piece": layers(contiguous, 3, 8, norm=nn.LayerNorm(8)),
    "two views, halves multiplied": layers(chunked, 8),
    "two views, one after another": layers(
        lambda m, x: torch.cat(m.last(torch.cat([m.first(x), x.flip(1)])).chunk(2), 1), 8
    ),
    "flip": layers(lambda m, x: m.last(m.first(x).flip(0)), 8),
    "roll": layers(lambda m, x: m.last(m.first(x).roll(1, 0)), 8),
    "sorted": layers(lambda m, x: m.last(m.first(x)[[1, 0, 3, 2, 5, 4]]), 8),
    "mean of all": layers(lambda m, x: m.last((h := m.first(x).tanh()) + h.mean(0)), 8),
    "norm of all": layers(lambda m, x: m.last((h := m.first(x)) / torch.linalg.vector_norm(h)), 8),
    "largest of all": layers(lambda m, x: m.last((h := m.first(x)) / h.amax()), 8),
    "deviation of all": layers(lambda m, x: m.last((h := m.first(x)) / h.std()), 8),
    "moved on by padding": layers(lambda m, x: m.last(nn.functional.pad(m.first(x), (0, 0, 1, -1))), 8),
    "softmax over rows": layers(lambda m, x: m.last(m.first(x).softmax(0)), 8),
    "attention over rows": layers(lambda m, x: m.last((h := m.first(x)) @ h.T @ h), 8),
    "running sum": layers(lambda m, x: m.last(m.first(x).cumsum(0)), 8),
    "one row for another": layers(lambda m, x: m.last((h := m.first(x)).index_copy(0, torch.tensor([5]), h[:1])), 8),
    "columns as rows": layers(lambda m, x: m.last(m.across(m.first(x).T).T), 8, across=nn.Linear(6, 6)),
    "two rows as one": layers(
        lambda m, x: m.last(m.wide(m.first(x).view(3, 16)).view(6, 8)), 8, wide=nn.Linear(16, 16)
    ),
}
APART: dict[str, Make] = {
    "bert": encoder("bert", add_pooling_layer=False),
    "bert, eager": encoder("bert", attention="eager"),
    "roberta": encoder("roberta"),
    "roberta, eager": encoder("roberta", attention="eager"),
    "distilbert": encoder("distilbert", dim=WIDTH, n_layers=1, n_heads=2, hidden_dim=32),
    "distilbert, eager": encoder("distilbert", dim=WIDTH, n_layers=1, n_heads=2, hidden_dim=32, attention="eager"),
    "electra": encoder("electra", embedding_size=16),
    "albert": encoder("albert", embedding_size=16),
    "modernbert": encoder("modernbert"),
    "modernbert, eager": encoder("modernbert", attention="eager"),
    "bart": encoder("bart", d_model=WIDTH, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2),
    "gpt2": encoder("gpt2", n_embd=WIDTH, n_layer=1, n_head=2, n_positions=16),
    "gpt2, eager": encoder("gpt2", n_embd=WIDTH, n_layer=1, n_head=2, n_positions=16, attention="eager"),
    "places, one for each step": lambda: (
        Net(
            {"tokens": nn.Embedding(11, 8), "places": nn.Embedding(5, 8), "last": nn.Linear(8, 8)},
            lambda m, x: m.last(m.tokens(x) + m.places(torch.arange(5))).mean(1),
        ),
        words(),
    ),
    "batch first": layers(
        lambda m, x: m.last(m.first(x).transpose(1, 2).reshape(6, -1)).view(6, 2, 4), 2, 4, first=nn.Linear(4, 4)
    ),
    "steps as rows": layers(lambda m, x: m.last(m.first(x).view(-1, 8)).view(6, 3, 8).sum(1), 3, 8),
    "flip of columns": layers(lambda m, x: m.last(m.first(x).flip(-1).roll(2, -1).cumsum(1)), 8),
    "columns": layers(
        lambda m, x: m.last(torch.cat([(h := m.first(x))[:, 4:], h[:, [3, 1]], h.split(2, 1)[0]], -1)), 8
    ),
    "padded": layers(lambda m, x: m.last(nn.functional.pad(m.first(x)[:, 1:], (1, 0))), 8),
    "stacked": layers(lambda m, x: m.last(torch.stack([h := m.first(x), h.tanh()], 1)).amax(1), 8),
    "images": layers(
        lambda m, x: m.last(nn.functional.max_pool2d(m.norm(m.conv(x)), 2).flatten(1)), 2, 4, 4,
        conv=nn.Conv2d(2, 2, 3, padding=1), norm=nn.BatchNorm2d(2).eval(),
    ),
    "matrices added": layers(lambda m, x: torch.addmm(m.first(x).tanh(), x, m.last.weight), 8),
    "norms of groups": layers(lambda m, x: m.last(m.norm(m.first(x))), 8, norm=nn.GroupNorm(2, 8, affine=False)),
}  # fmt: skip


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the graph shows must suffice: the first step's check sees the numbers of one step."""
    monkeypatch.setattr(routes_module, "verify", lambda *given, **options: True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("made", MIXING)
def test_rows_that_are_mixed_go_by_task(made: str) -> None:
    setting = Setting(MIXING[made], own_rows=True)
    assert setting.taken("auto").route != "grouped"
    equal(setting, "auto")
    with pytest.raises(RuntimeError, match=r"Backward\d is not known to keep the tasks' rows apart|is read by"):
        setting.engine(route="grouped").backward(setting.losses())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("made", APART)
def test_rows_that_are_kept_apart_go_together(made: str) -> None:
    setting = Setting(APART[made], own_rows=True)
    assert setting.taken("auto").route == "grouped"
    equal(setting, "auto")


def test_every_rule_is_of_an_operation() -> None:
    known = {name.rstrip("012") for name in dir(torch._C._functions)}
    assert not {name.rstrip("012") for name in RULES} - known


@pytest.mark.parametrize("mix", [True, False])
def test_rows_that_are_mixed_from_some_step_on(mix: bool) -> None:
    """Unseen by the first step's check: an operation that comes later, and one whose result is 0 at first."""
    mixes = [False]

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        other = m.last(x.transpose(0, 1).contiguous()).relu().transpose(0, 1).contiguous()
        return (x + m.out(other) + (x.flip(0) if mixes[0] else 0)).mean(1)

    setting = Setting(layers(run, 4, 8, out=nn.Linear(8, 8)), own_rows=True)
    nn.init.zeros_(setting.trunk.out.weight)
    engine, plain = setting.engine(), setting.engine(route="sequential")
    for step in range(3):
        record, expected = engine.backward(setting.losses()), plain.backward(setting.losses())
        assert record is not None and expected is not None
        torch.testing.assert_close(record.gramian, expected.gramian, rtol=1e-11, atol=1e-14)
        mixes[0] = mix
        nn.init.normal_(setting.trunk.out.weight, std=step)


class RandomDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.seed = 0

    def forward(self, x: Tensor) -> Tensor:
        chance = random.Random(self.seed)
        for _ in range(chance.randint(1, 4)):
            x = chance.choice(self.layers)(x).relu()
            if chance.random() < 0.1:
                x = x + x.mean(0)
            if chance.random() < 0.1:
                x = x.flip(0)
        return x


def test_a_graph_that_is_another_at_each_step() -> None:
    setting = Setting(lambda: (RandomDepth(), images(8)), own_rows=True)
    engine, plain = setting.engine(), setting.engine(route="sequential")
    for seed in range(60):
        setting.trunk.seed = seed
        record, expected = engine.backward(setting.losses()), plain.backward(setting.losses())
        assert record is not None and expected is not None
        torch.testing.assert_close(record.gramian, expected.gramian, rtol=1e-11, atol=1e-14)
