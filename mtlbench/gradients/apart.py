"""Which results hold the rows of several tasks apart: what one backward of all tasks stands on.

Where all losses meet, each task has some of R blocks of equal length, which follow one another along the first
dimension. Read back from there, an operand holds them apart if it is R such blocks too, and of each only the same block
of the result is made: then its gradient in a block is that of one task alone. Where several operations read a result,
this must be so for all of them. `RULES` has those that are known to; any other is taken to mix all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

from torch.autograd.graph import Node

from mtlbench.gradients.graph import Graph, Shape, shape_of
from mtlbench.gradients.structure import LEAF

# Whether the operand in a slot of an operation is of R blocks where the result is: (node, slot, shape of the operand,
# shape of the result, R).
Rule = Callable[[Any, int, Shape, Shape, int], bool]


def mixed(graph: Graph, starts: Sequence[int], rows: int) -> dict[Node, Node]:
    """The nodes behind the cut whose results do not hold the tasks' rows apart, each with the operation that is why.

    Args:
        graph: of the losses, with a cut.
        starts: the first row of each task at the cut.
        rows: at the cut.
    """
    blocks = rows // gcd(rows, *starts[1:])
    found: dict[Node, Node] = {}
    for node in graph.behind():  # after all that read its results
        why, made = found.get(node), shape_of(node)
        rule = RULES.get(type(node).__name__)
        for slot, (source, output) in enumerate(node.next_functions):
            if source is None or type(source) is LEAF or source in found:
                continue
            if why is not None:
                found[source] = why
            elif rule is None or not rule(node, slot, shape_of(source, output), made, blocks):
                found[source] = node
    return found


def _as_long(node: Any, slot: int, given: Shape, made: Shape, blocks: int) -> bool:
    """Operands are broadcast along other dimensions than the first, if at all."""
    return len(given) == len(made) and given[0] == made[0]


def _in_order(node: Any, slot: int, given: Shape, made: Shape, blocks: int) -> bool:
    """The numbers are the same, one after another."""
    return len(given) > 0 and given[0] % blocks == 0


def _operand(number: int) -> Rule:
    """Row i of the result is made of row i of one operand, and of all of the others that are not as long."""

    def rule(node: Any, slot: int, given: Shape, made: Shape, blocks: int) -> bool:
        return slot == number

    return rule


def _along(*names: str) -> Rule:
    """The operation goes along some dimensions, and the first is not among them."""

    def rule(node: Any, slot: int, given: Shape, made: Shape, blocks: int) -> bool:
        if not given or given[0] != made[0]:
            return False
        dims: list[int] = []
        for name in names:
            saved = getattr(node, name)
            if saved is None or saved == ():  # all
                return False
            dims += saved if isinstance(saved, tuple) else [saved]
        return all(_signed(dim) % max(len(given), len(made)) for dim in dims)

    return rule


def _signed(dim: int) -> int:
    """A dimension as it was given: autograd's attributes show -1 as 2 ** 64 - 1."""
    return dim - (1 << 64) if dim >> 63 else dim


def _addmm(node: Any, slot: int, given: Shape, made: Shape, blocks: int) -> bool:
    return slot == 1 or (slot == 0 and _as_long(node, slot, given, made, blocks))


def _slice(node: Any, slot: int, given: Shape, made: Shape, blocks: int) -> bool:
    return given[0] == made[0]  # along the first dimension, all of it


def _permute(node: Any, slot: int, given: Shape, made: Shape, blocks: int) -> bool:
    return _signed(node._saved_dims[0]) % len(given) == 0


def _index(node: Any, slot: int, given: Shape, made: Shape, blocks: int) -> bool:
    """With one index, which is not the first: two that are apart would put their dimension first."""
    first, *others = node._saved_indices
    return first is None and sum(index is not None for index in others) == 1


def _layer_norm(node: Any, slot: int, given: Shape, made: Shape, blocks: int) -> bool:
    return slot == 0 and len(given) > len(node._saved_normalized_shape)


def _batch_norm(node: Any, slot: int, given: Shape, made: Shape, blocks: int) -> bool:
    return slot == 0 and not node._saved_training


def _pad(node: Any, slot: int, given: Shape, made: Shape, blocks: int) -> bool:
    return len(node._saved_pad) < 2 * len(given)  # two numbers for each dimension from the last on


AS_LONG = """
    Abs Add Addcdiv Addcmul Alias Clamp ClampMax ClampMin Clone Cos Div Elu Erf Exp Expand Expm1 Gelu Hardsigmoid
    Hardswish Hardtanh LeakyRelu Lerp Log Log1P LogSigmoid MaskedFill Maximum Minimum Mish Mul NativeDropout Neg Pow
    PreluKernel Reciprocal Relu Rsqrt Rsub Sigmoid Silu Sin Softplus Sqrt Sub Tanh Threshold ToCopy Where
    Baddbmm Bmm Repeat
    AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D AdaptiveMaxPool3D AvgPool2D AvgPool3D MaxPool2DWithIndices
    MaxPool3DWithIndices UpsampleBilinear2D UpsampleLinear1D UpsampleNearest1D UpsampleNearest2D
    ScaledDotProductCudnnAttention ScaledDotProductEfficientAttention ScaledDotProductFlashAttention
    ScaledDotProductFlashAttentionForCpu
"""
IN_ORDER = "ReshapeAlias Squeeze UnsafeView Unsqueeze View"
ALONG = """
    Amax Amin Cat Cumsum Gather Glu IndexSelect LinalgVectorNorm LogSoftmax Logsumexp Max Min SafeSoftmax Select Softmax
    Split Stack Std Unbind Var
"""


def _nodes(names: str, rule: Rule, *, variants: str = "0") -> dict[str, Rule]:
    """By the names of autograd's nodes, such as AddBackward0."""
    return {f"{name}Backward{variant}": rule for name in names.split() for variant in variants}


RULES: dict[str, Rule] = {
    **_nodes(AS_LONG, _as_long, variants="012"),
    **_nodes(IN_ORDER, _in_order, variants="012"),
    **_nodes(ALONG, _along("_saved_dim")),
    **_nodes("Mean Sum", _along("_saved_dim"), variants="1"),
    "AddmmBackward0": _addmm,
    "MmBackward0": _operand(0),
    "ConvolutionBackward0": _operand(0),
    "NativeGroupNormBackward0": _operand(0),
    "NativeLayerNormBackward0": _layer_norm,
    "NativeBatchNormBackward0": _batch_norm,
    "TransposeBackward0": _along("_saved_dim0", "_saved_dim1"),
    "FlipBackward0": _along("_saved_dims"),
    "RollBackward0": _along("_saved_dims"),
    "PermuteBackward0": _permute,
    "SliceBackward0": _slice,
    "IndexBackward0": _index,
    "ConstantPadNdBackward0": _pad,
}
