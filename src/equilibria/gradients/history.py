"""What an evaluation's graph hangs on, and how products with its Jacobian avoid walking all of it.

Before a backward pass autograd counts the nodes behind the outputs, those of earlier solves too: a thousand solves in
one graph would be walked a thousand times. It skips nodes whose topological number, the length of the longest path
behind a node, is below that of every input asked for. So an input that hangs on a chain of idle nodes, longer than the
history, cuts the history off. Nothing else changes: the chain is only counted.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor

# There is no public way to ask for the surrounding hooks.
from torch._C._autograd import _top_saved_tensors_default_hooks

# Up to this many nodes of history, counting them at every product is cheaper than another evaluation of the map.
LONG = 500


def behind(outputs: Iterable[Tensor], inputs: Iterable[Tensor]) -> Iterator[Any]:
    """Every node and leaf of the graph behind the outputs, except the inputs and what is only behind those."""
    waiting: list[Any] = [leaf.grad_fn or leaf for leaf in outputs if leaf.requires_grad]
    own = {id(node): node for leaf in inputs for node in (leaf, leaf.grad_fn)}
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        leaf = _leaf(node)
        if id(node) in own or (id(leaf) in own and leaf is not None):
            continue
        yield node
        if leaf is None and solved(node) is None:
            following = {child for child, _ in cast(Any, node).next_functions if child is not None} - seen
            seen |= following
            waiting += following


def _leaf(node: Any) -> Tensor | None:
    """The tensor that a gradient ends in at this node, None for nodes on the way."""
    return node if isinstance(node, Tensor) else getattr(node, "variable", None)


def solved(node: Any) -> int | None:
    """At least the length of the longest path behind a node that attaches a solution, None for other nodes."""
    return getattr(getattr(node, "evaluation", None), "height", None)


def asks(node: Any) -> bool:
    """Whether a node is known to lead to a leaf that asks for a gradient: it is one, or attaches a solution."""
    return isinstance(node, Tensor) or hasattr(node, "variable") or hasattr(node, "evaluation")


def heights(outputs: Iterable[Tensor], inputs: Iterable[Tensor]) -> tuple[int, int]:
    """The number of nodes behind the outputs up to other solutions, and the height of the highest of those."""
    nodes = before = 0
    for node in behind(outputs, inputs):
        nodes += 1
        before = max(before, solved(node) or 0)
    return nodes, before


class _Above(torch.autograd.Function):
    """The first tensor, hung on the second as well, which gets no gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, chain: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return incoming, None


_chain = [torch.zeros((), requires_grad=True)]


def above(tensor: Tensor, length: int) -> Tensor:
    """The tensor with more than `length` idle nodes behind it, which are made once."""
    with torch.enable_grad():
        while len(_chain) <= length:
            _chain.append(_chain[-1].neg())
        return _Above.apply(tensor, _chain[length])


def kept_as_it_is() -> AbstractContextManager[object]:
    """A context in which a surrounding activation checkpoint does not touch what a graph keeps. It would compute the
    whole solve again for every product with the Jacobian, to save one evaluation."""
    around = _top_saved_tensors_default_hooks(False)
    # In the forward pass and in its recomputation, which count what is kept and must count the same.
    if around is None or not around[0].__qualname__.startswith(("_checkpoint_hook", "_recomputation_hook")):
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
