"""The autograd graph of a step's losses, read: which task reaches which parameter, through what, and where they meet.

Reading the graph rather than hooking modules finds every use of a parameter, also a functional or a tied one, leaves
no trace on the modules, and is done anew at every step: about a microsecond a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from mtlbench.gradients.structure import Place, Structure, find, is_nested, walk

Shape = Sequence[int]
FORMS = 16  # graphs of so many forms are remembered
# One operation that reads a tensor: its node, where what it saved for its gradient are attributes with names of their
# own, and which of its inputs the tensor is. A plain pair: some are made for every node of a graph, at every step.
Use = tuple[Any, int]


class Graph:
    """What lies behind the losses of a step.

    Attributes:
        cut: the one result through which alone all losses reach shared parameters; None where there is none, or
            where a private parameter lies behind it too.
        heads: those that read the cut's result.
        mixed: whether tasks also have operations or private parameters before the cut in common.
        reach: of each leaf, by id, the tasks that reach it: bit k for the k-th loss.
        others: whether there are leaves that are neither shared nor private parameters. Where there are none, autograd
            need not be told which to write to: that takes more than a percent of a small step.

    Args:
        places: of the operations.
        structure: that they have.
    """

    def __init__(self, places: dict[Node, int], structure: Structure) -> None:
        self._places, self._nodes, self._structure = places, [*places], structure
        self.reach, self.mixed, self.others = structure.reach, structure.mixed, structure.others
        self.cut: GradientEdge | None = None
        self.heads: list[Use] = []
        if structure.cut is not None:
            place, output = structure.cut
            self.cut = GradientEdge(self._nodes[place], output)
            self.heads = self._found(structure.readers[place])

    def tasks(self, node: Node) -> int:
        """Those that reach an operation, as bits."""
        return self._structure.tasks[self._places[node]]

    def readers(self, node: Node) -> list[Use]:
        """The uses of an operation's results."""
        return self._found(self._structure.readers[self._places[node]])

    def uses(self, leaf: Tensor) -> list[Use]:
        """Of a leaf; none where no loss reaches it."""
        return self._found(self._structure.uses.get(id(leaf), []))

    def behind(self) -> list[Node]:
        """The operations behind the cut, itself first, latest first; all where there is none."""
        return [self._nodes[place] for place in self._structure.behind]

    def _found(self, places: Sequence[Place]) -> list[Use]:
        return [(self._nodes[place], slot) for place, slot in places]


class Graphs:
    """Reads the graphs of steps, of which most are alike: what follows from their form is found once.

    Args:
        shared: parameters.
        private: parameters.
    """

    def __init__(self, shared: Sequence[Tensor], private: Sequence[Tensor]) -> None:
        self._shared, self._private = shared, private
        self._known: dict[tuple[object, ...], Structure] = {}

    def read(self, losses: Sequence[Tensor]) -> Graph:
        """The graph of () losses."""
        places, form = walk(losses)
        known = self._known.get(form)
        if known is not None:
            graph = Graph(places, known)
            # Whether rows at the cut have one length, the form does not tell.
            if graph.cut is None or not is_nested(graph.cut.node, graph.cut.output_nr):
                return graph
        if len(self._known) == FORMS:
            self._known.clear()
        structure = find(losses, places, {*map(id, self._shared)}, {*map(id, self._private)})
        self._known[form] = structure
        return Graph(places, structure)


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
