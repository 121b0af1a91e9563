"""What follows from how the operations behind some losses hang together, whatever they are: found once for each form.

Operations are told by their places in the order in which a walk back from the losses meets them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

LEAF: Any = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]
Place = tuple[int, int]  # an operation, and which of its inputs or results


class Structure(NamedTuple):
    """What lies behind some losses.

    Attributes:
        tasks: of each operation those that reach it: bit k for the k-th loss.
        readers: of each operation those that read its results, and as which of their inputs.
        uses: of each leaf, by id, the same.
        reach: of each leaf, by id, the tasks that reach it.
        others: whether there are leaves that are neither shared nor private parameters.
        cut: the one result through which alone all losses reach shared parameters; None where there is none, or
            where a private parameter lies behind it too.
        mixed: whether tasks also have operations or private parameters before the cut in common.
        behind: the operations behind the cut, itself first, latest first; all where there is none.
    """

    tasks: list[int]
    readers: list[list[Place]]
    uses: dict[int, list[Place]]
    reach: dict[int, int]
    others: bool
    cut: Place | None
    mixed: bool
    behind: list[int]


def walk(losses: Sequence[Tensor]) -> tuple[dict[Node, int], tuple[object, ...]]:
    """The operations behind some losses with their places, and what tells their form from all others.

    Done at every step, and all that is: some microseconds for ten operations.
    """
    places: dict[Node, int] = {}
    form: list[object] = []
    queue: list[Node] = []
    for loss in losses:
        root = loss.grad_fn
        if root is None:  # the loss is a parameter
            form.append(-id(loss))
            continue
        place = places.get(root)
        if place is None:
            places[root] = place = len(queue)
            queue.append(root)
        form.append(place)
        form.append(loss.output_nr)
    for node in queue:  # which grows
        form.append(type(node))  # where the next one's inputs begin
        for source, output in node.next_functions:
            if source is None:
                form.append(None)
            elif type(source) is LEAF:
                leaf: Tensor = source.variable  # type: ignore[attr-defined]
                form.append(-id(leaf) if leaf.requires_grad else None)  # frozen since
            else:
                place = places.get(source)
                if place is None:
                    places[source] = place = len(queue)
                    queue.append(source)
                form.append(place)
                form.append(output)
    return places, tuple(form)


def outside(losses: Sequence[Tensor], known: Collection[int]) -> bool:
    """Whether some losses reach leaves of other ids than those known: half as long a look as `walk`."""
    queue: list[Node] = []
    for loss in losses:
        if loss.grad_fn is not None:
            queue.append(loss.grad_fn)
        elif id(loss) not in known:
            return True
    seen = set(queue)
    for node in queue:  # which grows
        for source, _ in node.next_functions:
            if source is None or source in seen:
                continue
            if type(source) is not LEAF:
                seen.add(source)
                queue.append(source)
            elif id(source.variable) not in known:  # type: ignore[attr-defined]
                return True
    return False


def find(
    losses: Sequence[Tensor], places: dict[Node, int], shared: Collection[int], private: Collection[int]
) -> Structure:
    """Finds it.

    Operations are visited latest first, by the number that autograd gives them: when one's turn comes, all that read
    its result have had theirs. Where it then is the only one left, everything further back lies behind it.

    Args:
        losses: () each.
        places: of the operations behind them.
        shared: ids of parameters.
        private: likewise.
    """
    nodes = [*places]
    tasks = [0] * len(nodes)
    outputs: dict[int, int | None] = {}  # which of an operation's results is used; None: several
    readers: list[list[Place]] = [[] for _ in nodes]
    uses: dict[int, list[Place]] = {}
    reach: dict[int, int] = {}
    met = False  # a shared parameter
    for task, loss in enumerate(losses):
        if loss.grad_fn is None:  # the loss is a parameter
            reach[id(loss)] = reach.get(id(loss), 0) | 1 << task
            met = True
            continue
        root = places[loss.grad_fn]
        tasks[root] |= 1 << task
        outputs[root] = loss.output_nr if outputs.get(root, loss.output_nr) == loss.output_nr else None
    cut: int | None = None
    first, ordered = 0, True
    past: set[int] = set()
    order = sorted(range(len(nodes)), key=lambda place: nodes[place]._sequence_nr(), reverse=True)
    for place in order:
        node = nodes[place]
        alone = len(past) + 1 == len(outputs)  # of those that were met
        if alone and not met and cut is None and _of_one_shape(node, outputs.get(place)):
            cut, first = place, len(past)
        past.add(place)
        for slot, (source, output) in enumerate(node.next_functions):
            if type(source) is LEAF:
                leaf = id(source.variable)  # type: ignore[union-attr]
                if not source.variable.requires_grad:  # type: ignore[union-attr]
                    continue
                uses.setdefault(leaf, []).append((place, slot))
                reach[leaf] = reach.get(leaf, 0) | tasks[place]
                met = met or leaf in shared
                if cut is not None and leaf in private:
                    cut, first, met = None, 0, True
            elif source is not None:
                back = places[source]
                ordered = ordered and back not in past
                tasks[back] |= tasks[place]
                readers[back].append((place, slot))
                outputs[back] = output if outputs.get(back, output) == output else None
    if not ordered:  # several threads made it, which number by themselves: any task may reach anything
        reach = dict.fromkeys(reach, (1 << len(losses)) - 1)
        cut = None
    others = not all(leaf in shared or leaf in private for leaf in reach)
    if cut is None:
        return Structure(tasks, readers, uses, reach, others, None, True, order)
    mixed = any(_several(tasks[place]) for place in order[:first])
    mixed = mixed or any(_several(reach.get(leaf, 0)) for leaf in private)
    return Structure(tasks, readers, uses, reach, others, (cut, outputs[cut] or 0), mixed, order[first:])


def is_nested(node: Any, output: int) -> bool:
    """Whether a result is a nested tensor, whose rows have no length in common."""
    nested: bool = node._input_metadata[output].is_nested_tensor
    return nested


def _of_one_shape(node: Node, output: int | None) -> bool:
    """Whether one result is used, and it is no nested tensor."""
    return output is not None and not is_nested(node, output)


def _several(tasks: int) -> bool:
    """Whether more than one bit is set."""
    return tasks & (tasks - 1) != 0
