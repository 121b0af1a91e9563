"""Tasks with rows of their own in one batch: one backward of all of them, from which each task's gradients are cut.

Where each loss reaches only its own rows of the representation and no layer mixes rows (see `apart`), the gradient at a
layer's result is that of one task in each row, and one backward of the sum gives them all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import chain, islice, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from mtlbench.gradients.apart import mixed
from mtlbench.gradients.choice import kind, lookups
from mtlbench.gradients.graph import Graph, dtype_of, shape_of
from mtlbench.gradients.parts import Part, Rows, Tokens
from mtlbench.gradients.rules import Rule, rule_of


def starts_of(cotangents: Iterable[Tensor | None]) -> list[int] | None:
    """The first row of each task, in a batch where each loss reaches rows of its own, one task after another.

    Args:
        cotangents: (N, ...) of each loss, two or more, at what all read; None where it does not reach it.

    Returns:
        None where two losses reach one row, one reaches none, or rows of a task lie before those of the last.
    """
    starts: list[int] = []
    end = -1
    cotangents = iter(cotangents)
    two = list(islice(cotangents, 2))
    if all(
        one is not None and one.ndim and len(one) and one[0].any() for one in two
    ):  # as mostly: seen without a look at all rows
        return None
    for cotangent in chain(two, cotangents):
        if cotangent is None or cotangent.ndim == 0 or not len(cotangent):
            return None
        rows = cotangent.reshape(len(cotangent), -1).abs().amax(1).nonzero()  # any(1) takes five times as long
        if not len(rows) or int(rows[0]) <= end:
            return None
        starts.append(int(rows[0]))
        end = int(rows[-1])
    return starts


class Plan:
    """How the gradients of all parts come out of one backward. To be made before it, which frees what it reads.

    Attributes:
        obstacle: why they do not; None where they do.

    Args:
        graph: of the losses.
        shared: all shared parameters.
        names: of them.
        chosen: indices of those whose gradients are taken.
        starts: the first row of each task at the cut.
        rows: at the cut.
    """

    def __init__(
        self,
        graph: Graph,
        shared: Sequence[nn.Parameter],
        names: Sequence[str],
        chosen: Sequence[int],
        *,
        starts: Sequence[int],
        rows: int,
    ) -> None:
        self._graph, self._starts, self._rows = graph, starts, rows
        self._rules: dict[int, list[Rule]] = {}
        self._lookups: dict[int, list[GradientEdge]] = {}
        why = mixed(graph, starts, rows)
        reached = (index for index in chosen if id(shared[index]) in graph.reach)
        obstacles = (self._obstacle(index, shared[index], names[index], why) for index in reached)
        self.obstacle = next((obstacle for obstacle in obstacles if obstacle is not None), None)

    def _obstacle(self, index: int, parameter: nn.Parameter, name: str, why: dict[Node, Node]) -> str | None:
        """Finds the operations that read a parameter; says why its gradients do not come out."""
        if parameter._backward_hooks:
            return f"{name} has a hook, which is to see the gradient of one task at a time"
        uses = self._graph.uses(parameter)
        embeddings = lookups(self._graph, parameter)
        if embeddings is not None:
            self._lookups[index] = [_edge_of_rows(self._graph, node, why) for node in embeddings]
            nodes = [edge.node for edge in self._lookups[index]]
        else:
            rules = [rule_of(self._graph, use) for use in uses]
            self._rules[index] = [rule for rule in rules if rule is not None]
            if len(self._rules[index]) < len(rules):
                operations = ", ".join(sorted({kind(node) for node, _ in uses}))
                return (
                    f"{name} is read by {operations}, checkpointed, in another precision or not known to go row by row"
                )
            nodes = [rule.node for rule in self._rules[index]]
        mixing = ", ".join(sorted({kind(why[node]) for node in nodes if node in why}))
        return f"between {name} and the losses {mixing} is not known to keep the tasks' rows apart" if mixing else None

    def take(self, cut: GradientEdge, cotangent: Tensor, parts: Sequence[Part], *, keep: bool) -> None:
        """Fills the parts, `Rows` and `Tokens`, from the sum of all cotangents at the cut.

        Each operation's gradient is used as it comes by, and then let go: kept to the end, those of a transformer's
        layers are more memory than its weights, and new to the cache each time.
        """
        uses: dict[Node, list[Callable[[Tensor], None]]] = {}
        written: set[int] = set()  # which parameters already have rows, in whatever order their uses come by
        for part in parts:
            if isinstance(part, Tokens):
                for number, edge in enumerate(self._lookups[part.indices[0]]):
                    uses.setdefault(edge.node, []).append(partial(self._fill_tokens, part, number))
                continue
            assert isinstance(part, Rows)
            for place, index in enumerate(part.indices):
                for rule in self._rules[index]:
                    uses.setdefault(rule.node, []).append(partial(self._fill, part, place, rule, index, written))
        ends, passed = _ends(self._graph, uses.keys())

        def use(node: Node, grads: tuple[Tensor, ...]) -> None:
            for fill in uses[node]:
                fill(grads[0])

        hooks = [node.register_prehook(partial(use, node)) for node in passed]
        try:
            asked = [GradientEdge(node, 0) for node in ends]
            found = torch.autograd.grad([cut], asked, [cotangent], retain_graph=keep) if asked else ()
        finally:
            for hook in hooks:
                hook.remove()
        for node, grad in zip(ends, found, strict=True):
            use(node, (grad,))

    def _fill(self, rows: Rows, place: int, rule: Rule, index: int, written: set[int], grad: Tensor) -> None:
        rule.write(rows.rows_of(place), grad, self._bounds(len(grad)), again=index in written)
        written.add(index)

    def _fill_tokens(self, tokens: Tokens, call: int, grad: Tensor) -> None:
        tokens.add_rows(call, grad, self._bounds(len(grad)))

    def _bounds(self, length: int) -> list[tuple[int, int]]:
        """Each task's rows of an operation; rows before a task's first, whose gradients are 0, go to the last."""
        starts = [0, *(start * length // self._rows for start in self._starts[1:]), length]
        return list(pairwise(starts))


def _edge_of_rows(graph: Graph, node: Any, why: dict[Node, Node]) -> GradientEdge:
    """Where the gradient of an embedding is taken row by row."""
    (sum_of, slot), *more = graph.readers(node)
    if node in why and not more and kind(sum_of) == "AddBackward0":
        scaled = slot == 1 and sum_of._saved_alpha != 1
        others = shape_of(sum_of)[1:]
        if not scaled and dtype_of(sum_of) == dtype_of(node) and shape_of(node)[-len(others) :] == others:
            # Positions, added to all rows alike: the gradient row by row is that of the sum.
            return GradientEdge(sum_of, 0)
    return GradientEdge(node, 0)


def _ends(graph: Graph, wanted: Collection[Node]) -> tuple[list[Node], list[Node]]:
    """The wanted nodes behind which there are no others, and those that a backward to them passes."""
    leads: set[Node] = set()
    for node in reversed(graph.behind()):
        if any(source in leads or source in wanted for source, _ in node.next_functions):
            leads.add(node)
    return [node for node in wanted if node not in leads], [node for node in wanted if node in leads]
