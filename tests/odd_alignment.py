"""Tensors that start just past a boundary of 64 bytes, where PyTorch's own start on one: `pytest -p odd_alignment`.

Weights read from a file, rows of a batch and NumPy's arrays begin anywhere, and linear-algebra libraries choose other
kernels for them. While this plugin is loaded, what PyTorch's factories make (inputs, and the weights of modules) begins
4 bytes past a boundary, or one element past it where an element is larger: a processor may demand that much.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

BOUNDARY, OFFSET = 64, 4
_MADE_BY_TORCH = "empty zeros ones full rand randn randint tensor arange linspace eye"
_MADE_LIKE_ANOTHER = "empty_like zeros_like ones_like full_like rand_like randn_like"
_MADE_BY_A_TENSOR = "new_empty new_zeros new_ones new_full new_tensor"
FACTORIES: frozenset[Callable[..., Tensor]] = frozenset(
    [getattr(torch, name) for name in f"{_MADE_BY_TORCH} {_MADE_LIKE_ANOTHER}".split()]
    + [getattr(Tensor, name) for name in _MADE_BY_A_TENSOR.split()]
)


class OddAlignment(TorchFunctionMode):
    """Moves what the factories make."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        return moved(made) if func in FACTORIES and _is_plain(made) else made


def moved(tensor: Tensor) -> Tensor:
    """The same values with the same strides in memory whose storage begins past a boundary."""
    size, element = tensor.untyped_storage().nbytes(), tensor.element_size()
    past = max(OFFSET, element)
    memory = bytearray(size + BOUNDARY + past)
    first = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % BOUNDARY + past
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=size // element, offset=first)
    found = flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor.detach())
    # Inside a transform of torch.func nothing may be told whether it asks for a gradient, not even that it does not.
    return found.requires_grad_() if tensor.requires_grad else found


def _is_plain(made: Tensor) -> bool:
    """Whether it has memory of its own here, which what a transform of `torch.func` or a tracer makes has not."""
    return (
        type(made) is Tensor
        and not is_functorch_wrapped_tensor(made)
        and made.device.type == "cpu"
        and made.layout is torch.strided
        and made.numel() > 0
    )


OddAlignment().__enter__()  # until the process ends
