"""`torch.compile` for the cell, the one part of a model that is applied repeatedly."""

import shutil

from torch._functorch import config as autograd_options

from equilibria.errors import UserError
from equilibria.models import LanguageModel


def compile_cell(model: LanguageModel) -> None:
    """Compiles the cell at its first application; solver, embedding and loss stay as they are.

    Raises:
        UserError: there is no C++ compiler, which PyTorch needs for it on the CPU.
    """
    from torch._inductor import config as compiler_options  # a second, which only a compiled cell is worth

    device = next(model.parameters()).device
    # Those that PyTorch tries, CXX or the platform's own; None among them stands for a download it has to be asked for.
    compilers = [name for name in compiler_options.cpp.cxx if name]
    if device.type == "cpu" and not any(shutil.which(compiler) for compiler in compilers):
        raise UserError(
            f"training.compile needs a C++ compiler, and there is none of {', '.join(compilers)}; install one"
        )
    # A solve of the adjoint goes back through one evaluation many times: what it saved may not be used up.
    autograd_options.donated_buffer = False
    model.cell.compile()
