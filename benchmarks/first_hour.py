"""A first model with `eq.DEQ` and its defaults, beside TorchDEQ 0.1.0 with its own: accuracy, time, failed solves.

Three small tasks, as a newcomer would write them: handwritten digits through one dense cell, the nodes of a graph whose
labels are many edges away, and images cleaned of noise by a convolutional cell. Same data, same initial weights, same
order of samples for every contender, which take turns; where solves fall short, training goes on.

    equilibria bench first_hour [--tasks T ...] [--contenders C ...] [--seeds N] [--steps N] [--json] [--threads N]
                                [--out FILE]
"""

from __future__ import annotations

import importlib
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import equilibria as eq
from benchmarks._harness import options_of, prepare, publish
from benchmarks.solvers import peer
from equilibria.errors import UserError
from equilibria.gradients import Gradient, Guarded, JacobianFree, Neumann, Phantom, Switching
from equilibria.solvers import GMRES, Solver

TOLERANCE = 1e-3
RATE = 1e-2
JUDGED = range(0, 50, 10)
"""Steps before the end after which a model is judged; a score is their mean, since at this rate single ones jump."""


class DenseCell(nn.Module):
    """`tanh(W z + x)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(z) + x)


class NormalisedCell(nn.Module):
    """`LayerNorm(z + W₂ relu(W₁ z + x))`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.norm(z + self.second(torch.relu(self.first(z) + x)))


class ReluCell(nn.Module):
    """`relu(W z + x)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.relu(self.layer(z) + x)


class GraphCell(nn.Module):
    """`tanh(A z W + x)`; rows are nodes (Gu et al. 2020, arXiv:2009.06211, without its constraint on `W`)."""

    def __init__(self, adjacency: Tensor, width: int) -> None:
        super().__init__()
        self.adjacency = adjacency
        self.layer = nn.Linear(width, width)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.adjacency @ self.layer(z) + x)


class ResidualCell(nn.Module):
    """`N(relu(z + N(x + C₂ N(relu(C₁ z)))))` of convolutions and group norms (Kolter, Duvenaud and Johnson 2020)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.second = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(4, inner), nn.GroupNorm(4, channels), nn.GroupNorm(4, channels)])
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        y = self.norms[0](torch.relu(self.first(z)))
        return self.norms[2](torch.relu(z + self.norms[1](x + self.second(y))))


@dataclass
class Task:
    """A network around a cell, and what it is trained and judged by.

    Attributes:
        encode, cell, decode: the parts of the network.
        batches: of inputs and targets for one epoch.
        loss: of an output and a target.
        test: inputs, targets.
        score: of test outputs and targets; higher is better where `rising`.
    """

    encode: nn.Module
    cell: nn.Module
    decode: nn.Module
    steps: int
    batches: Callable[[torch.Generator], Iterator[tuple[Tensor, Tensor]]]
    loss: Callable[[Tensor, Tensor], Tensor]
    test: tuple[Tensor, Tensor]
    score: Callable[[Tensor, Tensor], float]
    rising: bool = True

    def parameters(self) -> list[nn.Parameter]:
        return [p for part in (self.encode, self.cell, self.decode) for p in part.parameters()]


def digit_images() -> tuple[Tensor, Tensor]:
    """The 1,797 images `(N, 64)` in [0, 1] and labels that come with scikit-learn."""
    try:
        datasets: Any = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise UserError("this benchmark reads scikit-learn's digits: pip install scikit-learn") from error
    digits = datasets.load_digits()
    return torch.tensor(digits.data / 16.0, dtype=torch.float32), torch.tensor(digits.target, dtype=torch.int64)


def minibatches(
    inputs: Tensor, targets: Tensor, size: int
) -> Callable[[torch.Generator], Iterator[tuple[Tensor, Tensor]]]:
    def epoch(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(inputs), generator=generator).split(size):
            yield inputs[rows], targets[rows]

    return epoch


def accuracy(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(-1) == target).float().mean())


def digits(seed: int, cell: Callable[[int], nn.Module] = DenseCell) -> Task:
    images, labels = digit_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1347], order[1347:]
    return Task(
        encode=nn.Linear(64, 64),
        cell=cell(64),
        decode=nn.Linear(64, 10),
        steps=300,
        batches=minibatches(images[train], labels[train], 128),
        loss=F.cross_entropy,
        test=(images[test], labels[test]),
        score=accuracy,
    )


def graph(seed: int, blocks: int = 4, size: int = 50, width: int = 16) -> Task:
    """Blocks of a sparse random graph; a fifth of the nodes shows its own, two fifths have labels, the rest is asked.

    What a node does not show it must learn from nodes several edges away.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(blocks).repeat_interleave(size)
    nodes = len(labels)
    chance = torch.where(labels[:, None] == labels, 5 / size, 0.5 / size / (blocks - 1))
    edges = (torch.rand(nodes, nodes, generator=generator) < chance).float().triu(1)
    adjacency = edges + edges.T + torch.eye(nodes)
    scale = adjacency.sum(-1).rsqrt()
    adjacency = scale[:, None] * adjacency * scale
    order = torch.randperm(nodes, generator=generator)
    shown, labelled, asked = order[: nodes // 5], order[nodes // 5 : 3 * nodes // 5], order[3 * nodes // 5 :]
    features = torch.zeros(nodes, blocks)
    features[shown] = F.one_hot(labels[shown], blocks).float()
    return Task(
        encode=nn.Linear(blocks, width),
        cell=GraphCell(adjacency, width),
        decode=nn.Linear(width, blocks),
        steps=150,
        batches=lambda _: iter([(features, labels)]),
        loss=lambda output, target: F.cross_entropy(output[labelled], target[labelled]),
        test=(features, labels),
        score=lambda output, target: accuracy(output[asked], target[asked]),
    )


def denoiser(seed: int, channels: int = 8, inner: int = 16) -> Task:
    """Mean squared error of images that noise of half their range was added to."""
    images, _ = digit_images()
    generator = torch.Generator().manual_seed(seed)
    images = images[torch.randperm(len(images), generator=generator)].reshape(-1, 1, 8, 8)
    noisy = images + 0.5 * torch.randn(images.shape, generator=generator)
    return Task(
        encode=nn.Conv2d(1, channels, 3, padding=1),
        cell=ResidualCell(channels, inner),
        decode=nn.Conv2d(channels, 1, 3, padding=1),
        steps=200,
        batches=minibatches(noisy[:1347], images[:1347], 64),
        loss=F.mse_loss,
        test=(noisy[1347:], images[1347:]),
        score=lambda output, target: float(F.mse_loss(output, target)),
        rising=False,
    )


TASKS: dict[str, Callable[[int], Task]] = {
    "digits": digits,
    "graph": graph,
    "denoiser": denoiser,
    "digits, normalised": lambda seed: digits(seed, NormalisedCell),
    "digits, relu": lambda seed: digits(seed, ReluCell),
}

Layer = Callable[[Tensor], tuple[Tensor, float]]
"""From the encoded input to the state and the share of groups that did not reach the tolerance."""


def ours(
    gradient: Gradient | None = None, solver: Solver | None = None
) -> Callable[[nn.Module], tuple[nn.Module, Layer]]:
    def build(cell: nn.Module) -> tuple[nn.Module, Layer]:
        layer = eq.DEQ(cell, solver=solver, gradient=gradient, on_failure="ignore")

        def apply(x: Tensor) -> tuple[Tensor, float]:
            solution = layer(torch.zeros_like(x), x)
            return solution.value, float((~solution.converged).float().mean())

        return layer, apply

    return build


def theirs(**settings: Any) -> Callable[[nn.Module], tuple[nn.Module, Layer]]:
    def build(cell: nn.Module) -> tuple[nn.Module, Layer]:
        layer = peer().get_deq(**settings)

        def apply(x: Tensor) -> tuple[Tensor, float]:
            values, info = layer(lambda z: cell(z, x), torch.zeros_like(x))
            return values[-1], float((info["rel_lowest"] > TOLERANCE).float().mean())

        return layer, apply

    return build


CONTENDERS: dict[str, Callable[[nn.Module], tuple[nn.Module, Layer]]] = {
    "default": ours(),
    "guarded": ours(Guarded()),
    "torchdeq, ift": theirs(ift=True),
    "torchdeq": theirs(),
    "implicit": ours(eq.Implicit()),
    "gmres 20": ours(eq.Implicit(GMRES(tol=1e-3, max_evaluations=20))),
    "picard 40": ours(eq.Implicit(eq.Picard(tol=1e-3, max_evaluations=40))),
    "switching": ours(Switching()),
    "phantom": ours(Phantom()),
    "neumann": ours(Neumann(5)),
    "jacobian-free": ours(JacobianFree()),
}


@dataclass
class Run:
    """What one training came to."""

    score: float = 0.0
    seconds: list[float] = field(default_factory=list)
    unconverged: list[float] = field(default_factory=list)
    unconverged_test: float = 0.0
    radius: float = 0.0
    gradient_norm: list[float] = field(default_factory=list)


def train(
    make: Callable[[int], Task],
    contender: Callable[[nn.Module], tuple[nn.Module, Layer]],
    seed: int,
    steps: int | None = None,
) -> Run:
    """Train one contender on one task from one seed, and judge it."""
    torch.manual_seed(seed)
    task, run, generator = make(seed), Run(), torch.Generator().manual_seed(seed)
    steps = steps or task.steps
    module, layer = contender(task.cell)
    optimizer = torch.optim.Adam(task.parameters(), lr=RATE)
    module.train()
    scores: list[float] = []
    while len(run.seconds) < steps:
        for inputs, targets in task.batches(generator):
            start = time.perf_counter()
            state, short = layer(task.encode(inputs))
            loss = task.loss(task.decode(state), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.seconds.append(time.perf_counter() - start)
            run.unconverged.append(short)
            run.gradient_norm.append(
                float(torch.stack([p.grad.norm() for p in task.parameters() if p.grad is not None]).norm())
            )
            left = steps - len(run.seconds)
            if left in JUDGED:
                scores.append(judge(task, module, layer, run))
            if not left:
                break
    run.score = mean(scores)
    return run


def judge(task: Task, module: nn.Module, layer: Layer, run: Run) -> float:
    """The score on the test set; notes how its solves went."""
    module.eval()
    with torch.no_grad():
        x = task.encode(task.test[0])
        state, run.unconverged_test = layer(x)
        score = task.score(task.decode(state), task.test[1])
    some = slice(None) if isinstance(task.cell, GraphCell) else slice(8)
    run.radius = eq.spectral_radius(lambda z: task.cell(z, x[some]), state[some], iterations=40)
    module.train()
    return score


def table_row(runs: list[Run]) -> dict[str, Any]:
    """Mean, least and largest score over seeds; medians or means of the rest."""
    scores = [run.score for run in runs]
    return {
        "scores": scores,
        "mean": mean(scores),
        "min": min(scores),
        "max": max(scores),
        "milliseconds_per_step": 1e3 * median([s for run in runs for s in run.seconds]),
        "unconverged": mean([u for run in runs for u in run.unconverged]),
        "steps_with_unconverged": mean([float(u > 0) for run in runs for u in run.unconverged]),
        "unconverged_test": mean([run.unconverged_test for run in runs]),
        "radius": median([run.radius for run in runs]),
        "largest_gradient_norm": max(g for run in runs for g in run.gradient_norm),
    }


def show(result: dict[str, Any], console: Console) -> None:
    for task, rows in result["tasks"].items():
        table = Table(title=task, box=SIMPLE, padding=0)
        for heading in ("", "mean", "min", "max", "ms/step", "short", "test", "radius", "grad"):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        for name, row in rows.items():
            table.add_row(
                name,
                *(f"{row[key]:.4f}" for key in ("mean", "min", "max")),
                f"{row['milliseconds_per_step']:.1f}",
                *(f"{row[key]:.1%}" for key in ("unconverged", "unconverged_test")),
                f"{row['radius']:.3f}",
                f"{row['largest_gradient_norm']:.2g}",
            )
        console.print(table)


def parsed(arguments: list[str]) -> Namespace:
    parser = options_of("first_hour", __doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["digits", "graph", "denoiser"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each contender")
    parser.add_argument("--steps", type=int, help="of a training; default: as many as the task says")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    status = prepare(options)
    found: dict[str, Any] = {}
    for task in options.tasks:
        runs: dict[str, list[Run]] = {name: [] for name in options.contenders}
        for seed in range(options.seeds):
            for name in options.contenders:
                runs[name].append(train(TASKS[task], CONTENDERS[name], seed, options.steps))
                status.print(f"{task}, {name}, seed {seed}: {runs[name][-1].score:.4f}")
        found[task] = {name: table_row(those) for name, those in runs.items()}
    publish("first_hour", arguments, options, {"seeds": options.seeds, "tasks": found}, show)
    return 0
