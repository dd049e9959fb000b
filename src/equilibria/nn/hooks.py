"""Whether a module may be passed by: its arithmetic done without calling it."""

from torch import nn
from torch.nn.modules import module as calls


def unhooked(module: nn.Module) -> bool:
    """Whether a call of the module does nothing but its `forward`: it has no hooks, nor do all modules, and it is not
    compiled."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return module._compiled_call_impl is None and not (any(own) or calls._has_any_global_hook())
