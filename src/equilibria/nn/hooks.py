"""Whether a module may be passed by: its arithmetic done without calling it."""

from torch import nn
from torch.nn.modules import module as calls


def unhooked(module: nn.Module) -> bool:
    """Whether a call of the module does nothing but what its class says: it has no hooks, nor do all modules, it is not
    compiled, and nobody has put another `forward` into it, as libraries do that move weights between devices."""
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    changed = module._compiled_call_impl is not None or "forward" in vars(module)
    return not (changed or any(own) or calls._has_any_global_hook())
