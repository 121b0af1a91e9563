"""The audit sees the bugs that other systems have had, and finds nothing wrong with models that are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from mtlbench.audit import Audit, audit, show, ways
from mtlbench.audit.findings import cover
from mtlbench.gradients.routes import ROUTES, Route, RouteRefusedError
from tests.test_readme import execute, section

X, Y = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), torch.ones(8, 1)


class Model(nn.Module):
    """Two stages, an attention module for each task, two heads; what is between them may be planted."""

    def __init__(self, between: Callable[[str, Tensor], Tensor] = lambda task, z: z, **more: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
        self.attention = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
        self.between = between
        for name, module in more.items():
            self.add_module(name, module)

    def encode(self, task: str) -> Tensor:
        z = self.between(task, self.encoder(X))
        return z * self.attention[task](z).sigmoid()

    def losses(self) -> dict[str, Tensor]:
        return {task: (head(self.encode(task)) - Y).square().mean() for task, head in self.heads.items()}


def look(model: Model, losses: Callable[[], Mapping[str, Tensor]] | None = None, **options: Any) -> Audit:
    given: dict[str, Any] = {"shared": model.encoder, "private": [model.attention, model.heads], "model": model}
    return audit(losses or model.losses, **(given | options))


def only(found: Audit, *words: str) -> None:
    """There is one error, of which it is said so; and it is shown."""
    (text,) = found.errors
    assert all(word in text for word in words), text
    console = Console(record=True, width=200)
    show(found, console)
    assert text[:60] in console.export_text()


def test_a_right_model() -> None:
    found = look(Model())
    assert found.findings == []
    assert found.cosines[0, 0] == pytest.approx(1)
    assert abs(found.cosines[0, 1]) < 1
    names = [pair[:2] for pair in found.pairs]
    assert {(ways.ALONE, route) for route in ROUTES if route not in found.refused} <= set(names)
    taken = len(ROUTES) - len(found.refused)
    assert len(names) == taken * (taken + 1) // 2
    assert all(max(pair.gramian, pair.direction) <= 1e-5 for pair in found.pairs)


def test_private_by_task() -> None:
    model = Model()
    own: dict[str, list[nn.Module | nn.Parameter]] = {t: [model.attention[t], model.heads[t]] for t in ("a", "b")}
    assert look(model, private=own).findings == []
    own["a"][1], own["b"][1] = own["b"][1], own["a"][1]
    texts = look(model, private=own).errors
    assert len(texts) == 2
    assert "heads.b is private to a, and the loss of b reaches it" in texts[0]


def test_everything_stays_as_it_was() -> None:
    model = Model()
    model.heads["a"].weight.grad = torch.ones(1, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    look(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["heads.a.weight"]
    assert torch.equal(model.heads["a"].weight.grad, torch.ones(1, 4))


def test_an_encoder_frozen_by_a_detached_representation() -> None:
    texts = look(Model(lambda task, z: z.detach())).errors
    assert sum("reaches no shared parameter" in text for text in texts) == 2
    assert any("No loss reaches encoder, given as shared" in text for text in texts)


def test_one_tasks_representation_detached() -> None:
    only(look(Model(lambda task, z: z.detach() if task == "b" else z)), "loss of b", "no shared parameter")


def test_detached_in_the_middle() -> None:
    model = Model()
    model.encoder[1].register_forward_hook(lambda module, inputs, output: output.detach())
    only(look(model), "No loss reaches encoder.0, given as shared")


def test_detached_in_the_middle_for_one_task() -> None:
    model = Model()

    def losses() -> dict[str, Tensor]:
        first = model.losses()["a"]
        with model.encoder[1].register_forward_hook(lambda module, inputs, output: output.detach()):
            return {"a": first, "b": model.losses()["b"]}

    only(look(model, losses), "encoder.0 is shared, and not reached by b")


def test_a_loss_that_is_detached() -> None:
    model = Model()
    found = look(model, lambda: {"a": model.losses()["a"], "b": model.losses()["b"].detach()})
    assert any("The loss of b reaches no parameter" in text for text in found.errors)


@pytest.mark.parametrize("wiped", ["a", "b"])
def test_attention_with_a_zeroed_gradient(wiped: str) -> None:
    model = Model()
    for parameter in model.attention[wiped].parameters():
        parameter.register_hook(torch.zeros_like)
    only(look(model), f"gradient of {wiped} reaches attention.{wiped} and is exactly zero")


def test_a_shared_layer_that_is_zero_for_one_task() -> None:
    only(look(Model(lambda task, z: z * (task == "a") + z.detach())), "gradient of b", "encoder and is exactly zero")


def test_a_zero_of_these_weights_alone() -> None:
    model = Model()
    nn.init.zeros_(model.heads["a"].weight)  # as LoRA's second factor is
    found = look(model)
    assert found.errors == []
    (note,) = found.findings
    assert note.level == "note"
    assert "at these very weights alone" in note.text


def test_a_head_that_reads_anothers() -> None:
    model = Model()

    def losses() -> dict[str, Tensor]:
        hidden = model.heads["a"](model.encode("a"))
        return {"a": (hidden - Y).square().mean(), "b": (model.heads["b"](model.encode("b")) * hidden).mean()}

    only(look(model, losses), "heads.a", "is private, and reached by the losses of a, b")


def test_rows_that_hold_the_ones_before() -> None:
    """LibMTL's MTAN on other layers than a plain ResNet's: gradients are summed and never zeroed between tasks."""
    model = Model()

    def encode() -> dict[str, Tensor]:
        z = model.encoder(X)
        sums = torch.zeros_like(z)

        def add(grad: Tensor) -> Tensor:
            sums.add_(grad)
            return sums.clone()

        z.register_hook(add)
        return {task: (model.heads[task](z) - Y).square().mean() for task in ("a", "b")}

    found = audit(encode, shared=model.encoder, private=model.heads)
    (text, *routes) = found.errors
    assert "gradient of b beside the others' differs from that of its loss alone" in text
    assert all("Route" in route for route in routes)
    assert any("Sequential.0.weight differs" in route for route in routes)


@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_trains(frozen: bool) -> None:
    model = Model()
    if frozen:
        model.requires_grad_(False)
    with torch.set_grad_enabled(frozen):
        only(look(model), "No parameter trains")


def test_neither_shared_nor_private() -> None:
    only(look(Model(extra=nn.Linear(2, 2))), "neither as shared nor as private: extra")


def test_an_unused_head() -> None:
    model = Model(extra=nn.Linear(2, 2))
    only(look(model, private=[model.attention, model.heads, model.extra]), "No loss reaches extra, given as private")


def test_not_finite() -> None:
    model = Model()
    found = look(
        model, lambda: {task: loss * (torch.inf if task == "b" else 1) for task, loss in model.losses().items()}
    )
    assert any("gradient of b is not finite" in text for text in found.errors)


def test_a_loss_that_is_not_finite_with_gradients_that_are() -> None:
    model = Model()
    only(look(model, lambda: model.losses() | {"b": model.losses()["b"] + torch.nan}), "The loss of b is nan.")


def test_what_is_no_error() -> None:
    model = Model(pooler=nn.Linear(4, 4))

    def losses() -> dict[str, Tensor]:
        pooled = model.losses()["a"] + model.pooler(model.encode("a")).square().mean()
        return {"a": pooled, "b": model.losses()["b"]}

    found = look(model, losses, shared=[model.encoder, model.pooler], tasks=["a", "b", "c"])
    assert found.errors == []
    texts = [finding.text for finding in found.findings if finding.level == "warning"]
    assert len(texts) == 2
    assert "No label in this batch of c" in texts[0]
    assert "pooler is given as shared, and a alone reaches it" in texts[1]


@pytest.mark.parametrize("error", [None, RuntimeError, RouteRefusedError])
def test_routes(error: type[Exception] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    way, wrong = ways.Engines.way, "ghost"

    def off(self: ways.Engines, route: Route) -> ways.Way:
        if route == wrong and error is not None:
            raise error("planted")
        found = way(self, route)
        return found._replace(gramian=found.gramian * (1.01 if route == wrong else 1))

    monkeypatch.setattr(ways.Engines, "way", off)
    found = look(Model())
    if error is RouteRefusedError:
        assert found.errors == []
        assert found.refused[wrong] == "planted"
    elif error is RuntimeError:
        only(found, f"Route {wrong}: planted")
    else:
        assert found.errors
        assert all("disagree" in text and wrong in text for text in found.errors)


def test_names() -> None:
    known = ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "heads.a.weight", "scale"]
    assert cover(known[:3], known) == ["encoder"]
    assert cover(known[1:4], known) == ["encoder.0.bias", "encoder.1", "heads"]
    assert cover(["scale"], known) == ["scale"]


def test_many_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    encoder, heads = nn.Linear(6, 4), nn.ModuleDict({f"t{i}": nn.Linear(4, 1) for i in range(20)})

    def losses() -> dict[str, Tensor]:
        z = encoder(X)
        return {task: (head(z) - Y).square().mean() for task, head in heads.items()}

    found = audit(losses, shared=encoder, private=heads)
    show(found, Console())
    out = capsys.readouterr().out
    assert "20 of 20" in out
    assert "Nothing wrong was found." in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_readme(tmp_path: Path) -> None:
    table, finding = execute(section("What each loss reaches"), tmp_path)
    assert "Nothing wrong was found." in table
    assert finding.startswith("error The loss of b reaches no shared parameter")
