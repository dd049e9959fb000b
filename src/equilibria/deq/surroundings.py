"""What PyTorch wraps around a solve: compilers, backward hooks, checkpoints, sharding."""

import functools
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import BackwardHook

from equilibria.solvers import Solution
from equilibria.solvers.state import leaves, rebuild

P = ParamSpec("P")
R = TypeVar("R")


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Keeps `torch.compile` of a caller out of a function, since how often a solve evaluates depends on its data. What
    the function calls may be compiled itself; `torch.export` traces through it."""
    disabled: Callable[P, R] = _disable_dynamo(function)

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return called


def with_backward_hooks(forward: Callable[..., Solution]) -> Callable[..., Solution]:
    """The forward pass of a module, whose full backward hooks see the gradient of the solution's value: PyTorch looks
    for tensors in what a module returns, and not inside it."""

    @functools.wraps(forward)
    def hooked(self: nn.Module, *args: Any, **kwargs: Any) -> Solution:
        hooks, _ = nn.Module._get_backward_hooks(self)
        before = nn.Module._get_backward_pre_hooks(self)
        if not (hooks or before) or not torch.is_grad_enabled():
            return forward(self, *args, **kwargs)
        hook = BackwardHook(self, hooks, before)
        solution = forward(self, *hook.setup_input_hook(args), **kwargs)
        seen: Any = hook.setup_output_hook(tuple(leaves(solution.value)))
        solution.value = rebuild(solution.value, iter(seen))
        return solution

    return hooked


class HandlesBackwardHooks(nn.Module):
    """A module whose forward pass is `with_backward_hooks`: calling it must not look for tensors again."""

    def _get_backward_hooks(self) -> tuple[list[Any], list[Any]]:
        return [], super()._get_backward_hooks()[1]

    def _get_backward_pre_hooks(self) -> list[Any]:
        return []


def check_checkpoint() -> None:
    """Raises RuntimeError where the caller's result goes straight to a reentrant checkpoint, which runs without
    gradients and gives a graph only to tensors, not to a `Solution`."""
    if torch.is_grad_enabled():
        return
    frame = sys._getframe(1)
    while frame is not None and _of_package(frame.f_code):
        frame = frame.f_back
    if frame is not None and frame.f_code is _CHECKPOINT:
        raise RuntimeError(
            "a reentrant checkpoint gives a graph to tensors, not to a Solution; "
            "pass use_reentrant=False, or checkpoint a function that returns solution.value"
        )


_CHECKPOINT = cast(CodeType, CheckpointFunction.forward.__code__)
_MODULES = ("torch/nn/modules/", "equilibria/deq/")


def _of_package(code: CodeType) -> bool:
    """Whether a frame only passes on what it calls: a module's call, or a container's."""
    return any(part in code.co_filename for part in _MODULES)


def check_sharding(cell: nn.Module) -> None:
    """Raises RuntimeError where a cell gathers its weights at every evaluation: processes evaluate different numbers of
    times, so that some would wait for others forever."""
    loaded = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(loaded, "FSDPModule", None)
    if kind is not None and any(isinstance(module, kind) for module in cell.modules()):
        raise RuntimeError(
            "the cell of a DEQ is sharded, and would gather its weights at every evaluation, a different number of "
            "times in every process; shard the DEQ itself, fully_shard(deq), which gathers them once per solve"
        )
