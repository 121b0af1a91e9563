"""Chooses by counted cost in which form each layer's task gradients are kept: the same for the same shapes, always."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from mtlbench.gradients.graph import Graph, Use, packed, shape_of
from mtlbench.gradients.kernels import Kernels
from mtlbench.gradients.parts import COLUMNS, Part, Product, Rows, Tokens
from mtlbench.gradients.structure import LEAF

CONVOLUTION = "ConvolutionBackward0"

# Multiply-adds that take as long as moving one number to and from memory.
MOVE = 20
LANES = 16  # channels in a vector, to whole numbers of which a CPU's convolutions are filled up
TOGETHER = 1 << 21  # numbers of the gradients of a convolution's result that go into one call


def divide(
    graph: Graph,
    shared: Sequence[nn.Parameter],
    groups: Sequence[int],
    *,
    tasks: int,
    chosen: Sequence[int],
    grouped: bool,
    rough: bool,
) -> list[Part]:
    """The parts that hold the task gradients of the chosen shared parameters, of those that some loss reaches.

    Args:
        graph: of the losses.
        shared: all shared parameters.
        groups: of each, whose weights act on it.
        tasks: A.
        chosen: indices of shared parameters.
        grouped: each row is of one task alone: all weights as rows, all embeddings by tokens.
        rough: inner products of factors in bfloat16.
    """
    parts: list[Part] = []
    left: list[int] = []
    plain = [index for index in chosen if shared[index].ndim == 1 and not shared[index]._backward_hooks]
    biases = {_added_to(graph, shared[index]): index for index in plain}
    for index in chosen:
        if id(shared[index]) in graph.reach:
            part: Part | None = None
            if shared[index]._backward_hooks:  # called where autograd is asked for the parameter's own gradient
                pass
            elif shared[index].ndim == 2:
                part = None if grouped else _product(graph, shared, index, biases, groups, tasks, rough=rough)
                part = part or _tokens(graph, shared[index], index, groups[index], tasks, always=grouped)
            elif shared[index].ndim == 4 and not grouped:
                part = _kernels(graph, shared, index, biases, groups, tasks)
            if part is None:
                left.append(index)
            else:
                parts.append(part)
    taken = {index for part in parts for index in part.indices}
    return parts + _rows([index for index in left if index not in taken], shared, groups, tasks)


def kind(node: Node) -> str:
    """What autograd calls an operation."""
    return type(node).__name__


def product_of(graph: Graph, use: Use) -> tuple[Any, bool] | None:
    """The product x W' (True) or x W (False) that a use of W is in; None where it is in another operation."""
    node, slot = use
    out_in = False
    if kind(node) == "TBackward0":
        (node, slot), *more = graph.readers(node)
        out_in = True
        if more:
            return None
    if kind(node) == "AddmmBackward0" and slot == 2 and node._saved_alpha == node._saved_beta == 1:
        return node, out_in
    return (node, out_in) if kind(node) == "MmBackward0" and slot == 1 else None


def factor_of(node: Any) -> Tensor:
    """The x (N, D) of a product."""
    x: Tensor = node._saved_mat1 if kind(node) == "AddmmBackward0" else node._saved_self
    return x.detach()


def before_relu(edge: GradientEdge) -> GradientEdge | None:
    """What a ReLU's result was made of; None where the result is of something else, or is packed."""
    known = kind(edge.node) == "ReluBackward0" and not packed(edge.node)
    source, output = edge.node.next_functions[0] if known else (None, 0)
    return None if source is None or type(source) is LEAF else GradientEdge(source, output)


def lookups(graph: Graph, weight: Tensor) -> list[Any] | None:
    """The embeddings that a weight is read by.

    None where it is read otherwise too, by one that is none of the plain ones, with several padding tokens, or where
    the tokens are packed.
    """
    nodes: list[Any] = []
    for node, _ in graph.uses(weight):
        if kind(node) != "EmbeddingBackward0" or node._saved_scale_grad_by_freq or node._saved_sparse or packed(node):
            return None
        nodes.append(node)
    return nodes if len({node._saved_padding_idx for node in nodes}) == 1 else None


def _product(
    graph: Graph,
    shared: Sequence[nn.Parameter],
    index: int,
    biases: dict[frozenset[Node], int],
    groups: Sequence[int],
    tasks: int,
    *,
    rough: bool,
) -> Product | None:
    found = [product_of(graph, use) for use in graph.uses(shared[index])]
    calls = [call for call in found if call is not None]
    if len(calls) != len(found) or len({out_in for _, out_in in calls}) != 1 or any(packed(node) for node, _ in calls):
        return None
    inputs = [factor_of(node) for node, _ in calls]
    rows, (d_in, d_out) = sum(map(len, inputs)), _in_out(shared[index], calls[0][1])
    by_kernel = rows * (rows * (d_in + tasks * d_out) + tasks * tasks * d_out + d_in * d_out)
    by_kernel += MOVE * tasks * rows * d_out
    by_rows = tasks * d_in * d_out * (rows + tasks + 2 * MOVE)
    if by_kernel >= by_rows:
        return None
    bias = biases.get(frozenset(node for node, _ in calls))
    with_bias = bias is not None and groups[bias] == groups[index] and len(shared[bias]) == d_out
    together = [index, bias] if bias is not None and with_bias else [index]
    edges = [GradientEdge(node, 0) for node, _ in calls]
    return Product(
        together,
        inputs,
        edges,
        width=d_out,
        out_in=calls[0][1],
        group=groups[index],
        tasks=tasks,
        rough=rough,
    )


def _in_out(weight: Tensor, out_in: bool) -> tuple[int, int]:
    one, other = weight.shape
    return (other, one) if out_in else (one, other)


def _added_to(graph: Graph, parameter: Tensor) -> frozenset[Node]:
    """The products or convolutions that a parameter is added to; empty where it is used otherwise too."""
    uses = graph.uses(parameter)
    if all((kind(node), slot) in (("AddmmBackward0", 0), (CONVOLUTION, 2)) for node, slot in uses):
        return frozenset(node for node, _ in uses)
    return frozenset()


def _kernels(
    graph: Graph,
    shared: Sequence[nn.Parameter],
    index: int,
    biases: dict[frozenset[Node], int],
    groups: Sequence[int],
    tasks: int,
) -> Kernels | None:
    node: Any
    (node, slot), *more = graph.uses(shared[index])
    if more or kind(node) != CONVOLUTION or slot != 1 or node._saved_transposed or node._saved_groups != 1:
        return None
    if packed(node):
        return None
    bias = biases.get(frozenset([node]))
    if node.next_functions[2][0] is not None and (bias is None or groups[bias] != groups[index]):
        return None
    x, numbers = node._saved_input, math.prod(shape_of(node))
    d_out, d_in, *sides = shared[index].shape
    if not x.is_cpu or d_in <= 3 or not numbers:  # an image's few channels are not filled up; a batch may be empty
        return None
    calls = -(-tasks // max(1, TOGETHER // numbers))
    together = -(-tasks // calls)
    area = numbers // d_out * math.prod(sides)
    by_rows = area * tasks * _filled(d_in) * _filled(d_out)
    by_kernels = area * calls * d_in * _filled(together * d_out) + MOVE * (x.numel() + tasks * numbers)
    if 4 * by_kernels > 3 * by_rows:  # near each other the count does not tell which is quicker
        return None
    indices = [index] if bias is None else [index, bias]
    parameters = [shared[i] for i in indices]
    return Kernels(indices, parameters, node, together=together, group=groups[index], tasks=tasks)


def _filled(channels: int) -> int:
    """Up to whole vectors."""
    return -(-channels // LANES) * LANES


def _tokens(graph: Graph, weight: Tensor, index: int, group: int, tasks: int, *, always: bool) -> Tokens | None:
    nodes = lookups(graph, weight)
    if nodes is None:
        return None
    tokens = [node._saved_indices for node in nodes]
    if not always and sum(one.numel() for one in tokens) >= len(weight):
        return None
    padding = nodes[0]._saved_padding_idx
    return Tokens(
        index,
        weight,
        tokens,
        [GradientEdge(node, 0) for node in nodes],
        padding=padding if padding < 1 << 63 else None,  # -1, unsigned
        group=group,
        tasks=tasks,
    )


def _rows(indices: Sequence[int], shared: Sequence[nn.Parameter], groups: Sequence[int], tasks: int) -> list[Part]:
    """Rows of small parameters of one group together: a product costs as much for ten numbers as for a thousand."""
    parts: list[Part] = []
    together: list[int] = []
    size = 0
    for index in indices:
        number = shared[index].numel()
        if together and (size + number > COLUMNS or groups[index] != groups[together[0]]):
            parts.append(Rows(together, [shared[i] for i in together], group=groups[together[0]], tasks=tasks))
            together, size = [], 0
        together.append(index)
        size += number
    if together:
        parts.append(Rows(together, [shared[i] for i in together], group=groups[together[0]], tasks=tasks))
    return parts


# Operations whose gradients autograd computes for many tasks at once as quickly as one by one, or quicker, on a CPU.
# Convolutions, attention and normalisations are slower so: 1.2 to 1.4 times as long.
BATCHED = {
    *("AddmmBackward0", "MmBackward0", "TBackward0", "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"),
    *("ReluBackward0", "TanhBackward0", "SigmoidBackward0", "GeluBackward0", "EluBackward0", "LeakyReluBackward0"),
    *("SiluBackward0", "MulBackward0", "AddBackward0", "SubBackward0", "NativeDropoutBackward0"),
}


def batches_well(graph: Graph) -> bool:
    """Whether what lies behind the cut is done for many tasks at once; what is run again for each backward is not."""
    return graph.cut is not None and all(kind(node) in BATCHED and not packed(node) for node in graph.behind())
