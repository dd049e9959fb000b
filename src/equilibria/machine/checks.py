"""Small problems with known answers, one for each thing that training needs; about ten seconds in all."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from torch import Tensor, distributed

from equilibria.cells import ContractiveCell
from equilibria.configuration import Recipe, RunRecipe, TrainingRecipe
from equilibria.configuration.building import build_model
from equilibria.data import FolderText, TokenizerSpec
from equilibria.data.prepared import opened
from equilibria.depths import Equilibrium
from equilibria.deq import fixed_point
from equilibria.diagnostics import audit_batch_invariance, audit_causality
from equilibria.gradients import Implicit
from equilibria.inference import load
from equilibria.models import LanguageModel, LanguageModelRecipe
from equilibria.nn import TiedEmbedding
from equilibria.optimization import Cosine
from equilibria.runs.metrics import read_metrics
from equilibria.solvers import GMRES, Anderson, Broyden, NewtonKrylov, Picard
from equilibria.training.randomness import seed_everything
from equilibria.training.trainer import Trainer


@dataclass(frozen=True)
class Finding:
    """What a check found: what should hold, whether it does, the figures or what went wrong, and seconds."""

    name: str
    ok: bool
    detail: str
    seconds: float


Check = Callable[[torch.device], tuple[bool, str]]


def examine(device: torch.device, on_finding: Callable[[Finding], None]) -> list[Finding]:
    """Runs every check on a device; one that raises has failed. Findings are passed on as they come."""
    findings = []
    with torch.random.fork_rng():  # what is drawn later stays the same
        for name, check in CHECKS.items():
            start = time.perf_counter()
            try:
                ok, detail = check(device)
            except Exception as problem:  # of whatever kind: that is what the check is for
                ok, detail = False, f"{type(problem).__name__}: {problem}"
            findings.append(Finding(name, ok, detail, time.perf_counter() - start))
            on_finding(findings[-1])
    return findings


@torch.no_grad()
def _closed_form(device: torch.device) -> tuple[bool, str]:
    """`z = A z + b` has the solution `(1 − A)⁻¹ b`."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    matrix = (0.8 / torch.linalg.matrix_norm(matrix, 2)) * matrix
    offset = torch.randn(4, 24, generator=generator, dtype=torch.float64)
    answer = torch.linalg.solve(torch.eye(24, dtype=torch.float64) - matrix, offset.mT).mT.to(device)
    matrix, offset = matrix.float().to(device), offset.float().to(device)
    errors = {}
    for solver in (Picard, Anderson, Broyden, NewtonKrylov):
        solution = fixed_point(lambda z: z @ matrix.mT + offset, offset, solver(tol=1e-5, max_evaluations=200))
        errors[solver.__name__] = float((solution.value - answer).norm() / answer.norm())
    worst = max(errors, key=lambda name: errors[name])
    return errors[worst] < 1e-3, f"largest relative error {errors[worst]:.0e} ({worst})"


def _gradient(device: torch.device) -> tuple[bool, str]:
    """The implicit gradient of a converged solution is that of many unrolled evaluations."""
    generator = torch.Generator().manual_seed(1)
    weight = (torch.randn(16, 16, generator=generator, dtype=torch.float64) / 8).to(device).requires_grad_()
    offset = torch.randn(4, 16, generator=generator, dtype=torch.float64).to(device)

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight + offset)

    tight = GMRES(tol=1e-10, max_evaluations=100, restart=50)
    solution = fixed_point(f, offset, Anderson(tol=1e-11, max_evaluations=100), Implicit(tight), on_failure="ignore")
    unrolled = offset
    for _ in range(100):
        unrolled = f(unrolled)
    found, expected = (torch.autograd.grad(z.square().sum(), weight)[0] for z in (solution.value, unrolled))
    error = float((found - expected).norm() / expected.norm())
    return error < 1e-6, f"relative difference {error:.0e}"


def _small_model(device: torch.device) -> tuple[LanguageModel, Tensor]:
    """A model that stops far from convergence, and tokens."""
    seed_everything(0)
    depth = Equilibrium(eval_solver=Anderson(tol=1e-9, max_evaluations=5, scope="prefix"))
    model = LanguageModel(TiedEmbedding(31, 32), ContractiveCell(d_model=32, heads=2, inner=64), depth)
    return model.to(device), torch.randint(31, (3, 24), generator=torch.Generator().manual_seed(2)).to(device)


def _causality(device: torch.device) -> tuple[bool, str]:
    audit = audit_causality(*_small_model(device))
    return audit.holds, f"largest change of a logit {audit.leak}"


def _batch(device: torch.device) -> tuple[bool, str]:
    audit = audit_batch_invariance(*_small_model(device))
    return audit.holds, f"largest change of a logit {audit.leak}"


def _run(device: torch.device) -> tuple[bool, str]:
    """A small model learns three sentences; its run, loaded again, predicts the same bit for bit."""
    with TemporaryDirectory() as folder:
        recipe = _recipe(Path(folder))
        task = opened(recipe.data)
        seed_everything(0)
        model = build_model(recipe, task.tokenizer.vocabulary_size).to(device)
        trainer = Trainer(model, recipe, task, recipe.run.folder, Console(quiet=True))
        trainer.run()
        lines = [line for line in read_metrics(trainer.folder.metrics) if line["kind"] == "train"]
        first, last = (float(str(line["loss"])) for line in (lines[0], lines[-1]))
        tokens = torch.arange(48).view(2, 24) % 31
        with torch.no_grad():
            trained = model.eval()(tokens.to(device)).logits.cpu()
            loaded = load(recipe.run.folder).to(device)(tokens.to(device)).logits.cpu()
    same = torch.equal(trained, loaded)
    learned = f"loss {first:.2f} to {last:.2f} in {recipe.training.steps} steps"
    return last < 0.9 * first and same, f"{learned}; loaded again it predicts {'the same' if same else 'otherwise'}"


def _recipe(folder: Path) -> Recipe:
    sentences = ("the cat sat on the mat.", "a fixed point is where a map returns what it was given.", "nobody knows.")
    for split, count in (("train", 400), ("valid", 20)):
        text = "\n".join(f"{number % 10} {sentences[number % 3]}" for number in range(count))
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    return Recipe(
        run=RunRecipe(name="check", directory=folder),
        data=FolderText(path=folder, tokenizer=TokenizerSpec("bytes"), cache=folder / "cache"),
        model=LanguageModelRecipe(cell=partial(ContractiveCell, d_model=32, heads=2, inner=64), memory_length=16),
        training=TrainingRecipe(
            steps=30,
            batch_size=4,
            segment_length=32,
            learning_rate=1e-2,
            schedule=Cosine(warmup_steps=5),
            evaluate_tokens=200,
        ),
    )


def _processes(device: torch.device) -> tuple[bool, str]:
    """A group of one process, which needs a working network interface, too."""
    if not distributed.is_available() or not distributed.is_gloo_available():
        return True, "skipped: this PyTorch has no gloo"
    if distributed.is_initialized():
        return True, "skipped: this process is in a group"
    store = distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        ones = torch.ones(3)
        distributed.all_reduce(ones)
    finally:
        distributed.destroy_process_group()
    return bool((ones == 1).all()), "gloo sums over a group of one"


CHECKS: dict[str, Check] = {
    "solvers find a known solution": _closed_form,
    "the implicit gradient is the unrolled one": _gradient,
    "no token sees a later one": _causality,
    "no row sees its neighbours": _batch,
    "training lowers the loss, runs load": _run,
    "processes can talk to each other": _processes,
}
"""What should hold, and how it is checked."""
