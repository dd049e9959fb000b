"""The cell through `torch.compile`: the one part of a model that is applied again and again."""

import os
import shutil

from torch._functorch import config as autograd_options

from equilibria.errors import UserError
from equilibria.models import LanguageModel

_COMPILERS = ("g++", "clang++", "c++")


def compile_cell(model: LanguageModel) -> None:
    """Compiles the cell at its first application; solver, embedding and loss stay as they are.

    Raises:
        UserError: there is no C++ compiler, which PyTorch needs for it on the CPU.
    """
    device = next(model.parameters()).device
    compilers = (os.environ["CXX"],) if "CXX" in os.environ else _COMPILERS
    if device.type == "cpu" and not any(shutil.which(compiler) for compiler in compilers):
        raise UserError(
            f"training.compile needs a C++ compiler, and there is none of {', '.join(compilers)}; install one"
        )
    # A solve of the adjoint goes back through one evaluation many times: what it saved may not be used up.
    autograd_options.donated_buffer = False
    model.cell.compile()
