"""The autograd graph of a step's losses, read: which task reaches which parameter, through what, and where they meet.

Reading the graph rather than hooking modules finds every use of a parameter, also a functional or a tied one, leaves
no trace on the modules, and is done anew at every step: 1 to 3 microseconds a node.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

Shape = Sequence[int]
LEAF: Any = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]
# One operation that reads a tensor: its node, where what it saved for its gradient are attributes with names of their
# own, and which of its inputs the tensor is. A plain pair: some are made for every node of a graph, at every step.
Use = tuple[Any, int]


@dataclass(frozen=True)
class Graph:
    """What lies behind the losses.

    Attributes:
        nodes: of all operations behind the losses, each with the tasks that reach it: bit k for the k-th loss.
        uses: of each leaf, by id.
        reach: the tasks that reach each leaf, by id.
        readers: the uses of each node's results.
        cut: the one result through which alone all losses reach shared parameters; None where there is none, or
            where a private parameter lies behind it too.
        mixed: whether tasks also have operations or private parameters before the cut in common.
        heads: those that read the cut's result.
        behind: the nodes behind the cut, itself among them; all where there is none.
    """

    nodes: dict[Node, int]
    uses: dict[int, list[Use]]
    reach: dict[int, int]
    readers: dict[Node, list[Use]]
    cut: GradientEdge | None
    mixed: bool
    heads: list[Use]
    behind: list[Node]


def shape_of(node: Any, output: int = 0) -> Shape:
    """Of one of an operation's results."""
    shape: Shape = node._input_metadata[output].shape
    return shape


def dtype_of(node: Any, output: int = 0) -> torch.dtype:
    """Of one of an operation's results."""
    dtype: torch.dtype = node._input_metadata[output].dtype
    return dtype


@cache
def _saved(kind: type) -> list[str]:
    """What an operation of a kind saves for its gradient, as it is kept."""
    return [name for name in dir(kind) if name.startswith("_raw_saved_")]


def packed(node: Any) -> bool:
    """Whether an operation saved its tensors packed, by checkpointing or offloading: then each look is dear.

    Of a checkpointed module each one runs it again, and keeps all that it saves. Sparse tensors count as packed too:
    they have no rows to take.
    """
    return any(_not_plain(getattr(node, name)) for name in _saved(type(node)))  # type: ignore[arg-type]


def _not_plain(saved: Any) -> bool:
    return saved.unpack_hook is not None or (saved.data is not None and saved.data.layout is not torch.strided)


def read(losses: Sequence[Tensor], shared: Collection[int], private: Collection[int]) -> Graph:
    """Reads the graph of some losses.

    Nodes are visited latest first, by the number that autograd gives them: when a node's turn comes, all that read
    its result have had theirs. Where it then is the only one left, everything further back lies behind it.

    Args:
        losses: () each.
        shared: ids of parameters.
        private: likewise.
    """
    nodes: dict[Node, int] = {}
    outputs: dict[Node, int | None] = {}  # which of a node's results is used; None: several
    readers: dict[Node, list[Use]] = {}
    uses: dict[int, list[Use]] = {}
    reach: dict[int, int] = {}
    queue: list[tuple[int, int, Node]] = []  # of several threads, nodes may have one number: then the first first
    met = False  # a shared parameter
    for task, loss in enumerate(losses):
        root, output = loss.grad_fn, loss.output_nr
        if root is None:  # the loss is a parameter
            reach[id(loss)] = reach.get(id(loss), 0) | 1 << task
            met = True
            continue
        if root not in nodes:
            heappush(queue, (-root._sequence_nr(), len(nodes), root))
            nodes[root], outputs[root], readers[root] = 0, output, []
        elif outputs[root] != output:
            outputs[root] = None
        nodes[root] |= 1 << task
    order: dict[Node, None] = {}
    cut: Node | None = None
    first, ordered = 0, True
    while queue:
        node = heappop(queue)[2]
        if not queue and not met and cut is None and _of_one_shape(node, outputs[node]):
            cut, first = node, len(order)
        order[node] = None
        mask = nodes[node]
        slot = -1
        for source, output in node.next_functions:
            slot += 1
            if source is None:
                continue
            found = readers.get(source)
            if found is not None:
                ordered = ordered and source not in order
                nodes[source] |= mask
                found.append((node, slot))
                if outputs[source] != output:
                    outputs[source] = None
            elif type(source) is not LEAF:
                heappush(queue, (-source._sequence_nr(), len(nodes), source))
                nodes[source], outputs[source], readers[source] = mask, output, [(node, slot)]
            else:
                variable: Tensor = source.variable  # type: ignore[attr-defined]
                if not variable.requires_grad:  # frozen since
                    continue
                leaf = id(variable)
                known = uses.get(leaf)
                if known is None:
                    uses[leaf] = [(node, slot)]
                else:
                    known.append((node, slot))
                reach[leaf] = reach.get(leaf, 0) | mask
                met = met or leaf in shared
                if cut is not None and leaf in private:
                    cut, first, met = None, 0, True
    if not ordered:  # several threads made it, which number by themselves: any task may reach anything
        reach = dict.fromkeys(reach, (1 << len(losses)) - 1)
        cut = None
    if cut is None:
        return Graph(nodes, uses, reach, readers, None, True, [], [*order])
    visited = [*order]
    before = visited[:first]
    mixed = any(_several(nodes[node]) for node in before) or any(_several(reach.get(leaf, 0)) for leaf in private)
    edge = GradientEdge(cut, outputs[cut] or 0)
    return Graph(nodes, uses, reach, readers, edge, mixed, readers.get(cut, []), visited[first:])


def _of_one_shape(node: Any, output: int | None) -> bool:
    """Whether one result of a node is used, and it is no nested tensor, whose rows have no length in common."""
    return output is not None and not node._input_metadata[output].is_nested_tensor


def _several(tasks: int) -> bool:
    """Whether more than one bit is set."""
    return tasks & (tasks - 1) != 0
