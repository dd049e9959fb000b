"""A model as a program that PyTorch (`torch.export`) or an ONNX runtime runs without this package, for any batch and
length.

A program is one evaluation of the cell, or a solve with a fixed number of evaluations: it cannot stop by residuals. Of
a grid it takes any number of whole rows.
"""

import copy
import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from equilibria.depths import Depth, Equilibrium, Reached, Restarts, Stack, UnrolledDepth
from equilibria.errors import UserError, cause, is_out_of_memory
from equilibria.files.durable import reported, write_durably
from equilibria.models import LanguageModel, TokenModel
from equilibria.ranges import whole
from equilibria.solvers import Anderson, Picard, Solver
from equilibria.solvers.point import CountedMap, Point
from equilibria.solvers.residual import Groups
from equilibria.solvers.state import Packing

Part = Literal["solve", "evaluation"]

METADATA = "equilibria.json"
"""The file inside a program that describes its origin."""

_EXAMPLE = (2, 3)  # rows of tokens, and tokens or rows of a grid, to trace with; 1 would become a constant


@dataclass(frozen=True)
class FixedBudget(Depth):
    """A solve of exactly `evaluations` evaluations, each followed by a step of the solver, whatever the residuals are.

    Args:
        solver: `Picard` or `Anderson`, whose steps do not depend on values.
        evaluations: at least 1.
    """

    solver: Solver
    evaluations: int

    def __post_init__(self) -> None:
        whole(1, evaluations=self.evaluations)
        if not isinstance(self.solver, Picard | Anderson):
            method = type(self.solver).__name__
            raise ValueError(f"a fixed budget needs the steps of Picard or Anderson, found {method}")

    def reach(self, f: Callable[[Tensor], Tensor], z0: Tensor, training: bool) -> Reached:
        packing, groups = Packing.of(z0, self.solver.scope), Groups(self.solver.scope)
        apply = CountedMap(f, packing, self.evaluations, self.evaluations)
        z = packing.pack(z0)
        memory = self.solver.init(z, groups)
        for _ in range(self.evaluations):
            value = apply.measure(z)
            z, memory = self.solver.step(memory, Point(z, value, value - z, None, apply), groups)
        return Reached(packing.unpack(z))


class SolvedLogits(nn.Module):
    """`forward(tokens)`: the logits `(B, L, V)` of a whole text `(B, L)`, at a depth."""

    def __init__(self, model: LanguageModel, depth: Depth) -> None:
        super().__init__()
        self.model, self._depth = model, depth

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, depth=self._depth, memory_length=0).logits


class OneEvaluation(nn.Module):
    """`forward(state, tokens)`: the cell applied once to a state `(B, L, ·)`, given a text `(B, L)`."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def inputs(self, tokens: Tensor) -> Tensor:
        """What the cell injects, `(B, L, d_model)`."""
        cell, prelude = self.model.cell, self.model.prelude
        inputs_BLD = self.model.embedding(tokens) * cell.d_model**0.5
        if prelude is None:
            return inputs_BLD
        return prelude.readout(prelude.bind(inputs_BLD)(prelude.initial_state(inputs_BLD)))

    def forward(self, state: Tensor, tokens: Tensor) -> Tensor:
        return self.model.cell.bind(self.inputs(tokens))(state)


def fixed_depth(model: TokenModel, evaluations: int | None = None) -> Depth:
    """The depth that a model is exported at; by default with its evaluation solver's limit, or its applications.

    Raises:
        UserError: another kind of model, a solver that cannot have a fixed budget, or evaluations of a `Stack`.
        ValueError: fewer than 1 evaluation.
    """
    whole(1, evaluations=evaluations)
    match _exported(model).depth:
        case Equilibrium(restarts=Restarts()):
            raise UserError(
                "this model chooses between solves from several starts, which a program does not; "
                "export it with a depth that has no restarts"
            )
        case Equilibrium(eval_solver=solver):
            try:
                return FixedBudget(solver, evaluations or solver.max_evaluations)
            except ValueError as problem:
                raise UserError(f"model.depth.eval_solver: {problem}") from problem
        case UnrolledDepth(applications=applications):
            return UnrolledDepth(evaluations or applications)
        case stack:
            if evaluations is not None:
                raise UserError("this model's layers are each applied once; omit the number of evaluations")
            return stack


def _exported(model: TokenModel) -> LanguageModel:
    if not isinstance(model, LanguageModel) or not isinstance(model.depth, Equilibrium | UnrolledDepth | Stack):
        raise UserError("cannot export this model: its cell is not solved or applied a fixed number of times")
    if model.chunk_length is not None:
        raise UserError("this model solves a text in chunks (model.chunk_length); only a whole text can be exported")
    return model


@torch.no_grad()
def export_program(model: TokenModel, part: Part = "solve", evaluations: int | None = None) -> ExportedProgram:
    """A part of a model as a program, for any batch and any length of text.

    Args:
        part: `"solve"`, from tokens to logits, or `"evaluation"`, from a state and tokens to the next state.
        evaluations: of a solve, as for `fixed_depth`.

    Raises:
        UserError: as for `fixed_depth`, a number of evaluations is given for the part `"evaluation"`, or PyTorch cannot
            trace the model for any length.
    """
    if part == "evaluation" and evaluations is not None:
        raise UserError('the part "evaluation" is one evaluation; omit the number of evaluations')
    depth = fixed_depth(model, evaluations) if part == "solve" else None
    # A program traced without gradients refuses parameters that require them.
    fixed = copy.deepcopy(_exported(model)).eval().requires_grad_(False)
    batch, length = _EXAMPLE
    columns = model.columns or 1
    shape = {0: Dim("batch", min=1), 1: columns * Dim("length", min=1)}
    tokens = torch.zeros(batch, columns * length, dtype=torch.long)
    if depth is not None:
        module, given = SolvedLogits(fixed, depth), {"tokens": tokens}
    else:
        module = OneEvaluation(fixed)
        given = {"state": fixed.cell.initial_state(module.inputs(tokens)), "tokens": tokens}
    try:
        shapes = dict.fromkeys(given, shape)
        return torch.export.export(module, tuple(given.values()), dynamic_shapes=shapes, strict=False)
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        raise UserError(
            f"torch.export cannot trace this model for texts of any length: {cause(problem)}; a cell that loops over "
            f"tokens, as a TrellisCell with scan does, cannot be exported"
        ) from problem


def save_onnx(program: ExportedProgram, path: Path, metadata: dict[str, object]) -> None:
    """Writes a program for ONNX runtimes, whole or not at all; its inputs and outputs have the names of the program's.

    Args:
        path: an `.onnx` file that does not exist.
        metadata: written into it, as JSON, under the name `METADATA`.

    Raises:
        UserError: the path is not a new `.onnx` file or cannot be written, or the program has no form in ONNX.
        ModuleNotFoundError: the packages onnx and onnxscript are missing.
    """
    check_new(path, ".onnx")
    import_module("onnxscript")  # which torch.onnx needs
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:  # what they say is of packages that nothing here needs
        logger.setLevel(logging.ERROR)
    try:
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
        assert converted is not None
        model = converted.model_proto
        model.metadata_props.add(key=METADATA, value=json.dumps(metadata))
        content = model.SerializeToString()
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        raise UserError(
            f"this program has no form in ONNX: {cause(problem)}. Steps of Anderson with a history above 1 solve "
            f"linear systems, which ONNX does not; those of Picard do not"
        ) from problem
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    with reported(path, "choose another name"):
        write_durably(path, content)


def check_new(path: Path, suffix: str) -> None:
    """Raises a UserError where a path is not that of a new file with the suffix of a program."""
    if path.suffix != suffix:
        raise UserError(f"{path} does not end in {suffix}, the suffix of such a program; choose another name")
    if path.exists():
        raise UserError(f"{path} exists already; choose another name or remove it")


def save_program(program: ExportedProgram, path: Path, metadata: dict[str, object]) -> None:
    """Writes a program for `torch.export.load`, whole or not at all.

    Args:
        path: a `.pt2` file that does not exist.
        metadata: written into it, as JSON, for `torch.export.load(path, extra_files={METADATA: ""})`.

    Raises:
        UserError: the path is not a new `.pt2` file, or cannot be written.
    """
    check_new(path, ".pt2")
    content = io.BytesIO()  # PyTorch's own file writer aborts the process on a full disk
    torch.export.save(program, content, extra_files={METADATA: json.dumps(metadata)})
    with reported(path, "choose another name"):
        write_durably(path, content.getbuffer())
