"""The source of mlp-as-equilibrium.ipynb; `python examples/notebooks.py` executes it and writes the notebook."""

# %% [markdown]
# # Your own MLP as an equilibrium
#
# A small classifier of handwritten digits, built three times from the same block:
#
# - the block applied **once**, as an ordinary layer;
# - the block applied **8 times**, with shared weights (`eq.Unrolled`);
# - the block **solved** for its fixed point `z = block(z, x)` (`eq.DEQ`).
#
# All three have the same parameters and start from the same values. Besides accuracy we look at what is particular
# to an equilibrium: the residual, the number of evaluations and the spectral radius. At the end we see what happens
# when the map does not contract, and what to do about it.
#
# It takes about a minute on one CPU core. It needs `equilibria` and `scikit-learn`, which comes with the
# digits: nothing is downloaded.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import equilibria as eq

plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
colours = {"once": "tab:orange", "8 times": "tab:green", "equilibrium": "tab:blue", "bounded": "tab:purple"}

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16  # (1797, 64): 8 x 8 pixels from 0 to 1
labels = torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, test = order[:1200], order[1200:]
print(f"{len(train)} images to train on, {len(test)} to test on")

# %% [markdown]
# ## The block
#
# A residual MLP, with one change: its output is added to the input `x`, not to the state `z`. So `x` takes part in
# every application, and the fixed point depends on it.


# %%
class Block(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, z, x):
        return x + 0.9 * self.outer(torch.tanh(self.inner(z)))


# %% [markdown]
# ## Three models
#
# `eq.DEQ(block)` is a module. `deq(z0, x)` solves `z = block(z, x)` from `z0` and returns a `Solution`. Its
# gradient is that of the solution; nothing of the solve has to be stored for it.
#
# `eq.Unrolled(8)` replaces the solve by 8 plain applications, differentiated like any 8 layers. It is a way of
# taking gradients: with gradients off (`torch.no_grad()`), a `DEQ` always solves. So we measure all models with
# gradients on.


# %%
class Classifier(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.encoder = nn.Linear(64, 32)
        self.deq = eq.DEQ(Block(32, 64), on_failure="ignore", **options)
        self.head = nn.Linear(32, 10)

    def solve(self, images):
        x = self.encoder(images)
        return self.deq(x, x)  # start from x itself

    def forward(self, images):
        return self.head(self.solve(images).value)


def make(**options):
    torch.manual_seed(0)
    return Classifier(**options)


solver = eq.Anderson(tol=1e-4, max_evaluations=60)
models = {
    "once": make(gradient=eq.Unrolled(1)),
    "8 times": make(gradient=eq.Unrolled(8)),
    "equilibrium": make(solver=solver),
}
print(f"{sum(p.numel() for p in models['once'].parameters()):,} parameters each")

# %% [markdown]
# The training loop is an ordinary one. Once per epoch we note the spectral radius and how many solves of an image
# did not converge. `eq.spectral_radii` is the largest modulus of an eigenvalue of `∂f/∂z` where the solve ended,
# image by image. Where it is below 1, plain iteration converges from nearby: the smaller, the faster.


# %%
def radii(model):
    x = model.encoder(images[test]).detach()
    return eq.spectral_radii(lambda z: model.deq.cell(z, x), model.deq(x, x).value.detach(), iterations=32)


def fit(model, epochs=20):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 20 * epochs)
    generator = torch.Generator().manual_seed(1)
    log = []
    for _ in range(epochs):
        unconverged = 0
        for rows in train[torch.randperm(len(train), generator=generator)].split(60):
            solution = model.solve(images[rows])
            loss = F.cross_entropy(model.head(solution.value), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            unconverged += int((~solution.converged).sum())
        log.append((float(radii(model).max()), unconverged))
    return log


def accuracy(logits):
    return float((logits.argmax(1) == labels[test]).float().mean())


logs = {name: fit(model) for name, model in models.items()}
accuracies = {name: accuracy(model(images[test])) for name, model in models.items()}
saved = {
    name: eq.saved_bytes(lambda model=model: model(images[train[:60]]), model.parameters()) / 1000
    for name, model in models.items()
}
for name in models:
    print(f"{name:12} accuracy {accuracies[name]:.3f}; {saved[name]:4.0f} kB stored for the backward pass of 60 images")

# %% [markdown]
# In accuracy they differ by a handful of images. Digits do not need depth, and where that is so, an ordinary layer
# is the right choice: it costs one evaluation. The difference is in memory: the equilibrium stores one application
# for its backward pass, as the ordinary layer does, and not eight.
#
# ## The same weights, applied more or less often
#
# Take the trained weights and apply the block `k` times, whatever the model was trained with.


# %%
@torch.no_grad()
def after_applications(model, most=40):
    x = z = model.encoder(images[test])
    for _ in range(most):
        z = model.deq.cell(z, x)
        yield accuracy(model.head(z))


applied = {name: list(after_applications(model)) for name, model in models.items()}

figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
for name, curve in applied.items():
    axes.plot(range(1, 41), curve, "o-", markersize=3, color=colours[name], label=f"trained: {name}")
axes.set(xlabel="applications of the block", ylabel="test accuracy", xlim=(0, 41), ylim=(0.4, 1))
axes.set_title("Trained weights, applied more or less often", loc="left")
axes.legend(loc="lower left", bbox_to_anchor=(0.45, 0.25))
for name, curve in applied.items():
    print(f"trained: {name:12} after 1: {curve[0]:.3f}   after 8: {curve[7]:.3f}   after 40: {curve[39]:.3f}")

# %% [markdown]
# The ordinary layer is right once; repeated, it leads away from the answer. The model of 8 applications is best
# near 8. The equilibrium improves with the first applications and then stays where it is: its answer belongs to the
# equation and not to a number of steps.
#
# ## Residual, evaluations, spectral radius
#
# A `Solution` says how it was found. The residual is `‖f(z) − z‖ / ‖f(z)‖`, one number per image.

# %%
model = models["equilibrium"]
x = model.encoder(images[test]).detach()
found = {}
for name, method in {"Picard": eq.Picard(), "Anderson": eq.Anderson(), "Broyden": eq.Broyden()}.items():
    with torch.no_grad():
        found[name] = eq.fixed_point(
            lambda z: model.deq.cell(z, x), x, method, tol=1e-4, max_evaluations=300, on_failure="ignore"
        )
    print(f"{name:9} {found[name].explain()}")

# %% [markdown]
# `eq.Picard` is plain iteration. `eq.Anderson` and `eq.Broyden` use earlier evaluations to take longer steps. How
# many evaluations an image needs depends on its spectral radius: the nearer to 1, the more.

# %%
radius = eq.spectral_radii(lambda z: model.deq.cell(z, x), found["Broyden"].value, iterations=32)
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
methods = {"Picard": "tab:gray", "Anderson": "tab:blue", "Broyden": "tab:cyan"}
for name, colour in methods.items():
    counts = np.sort(found[name].group_evaluations.numpy())
    left.plot(counts, np.arange(1, len(counts) + 1) / len(counts), color=colour, label=name)
    right.plot(radius, found[name].group_evaluations, ".", markersize=4, alpha=0.5, color=colour, markeredgewidth=0)
left.set(xscale="log", xlabel="evaluations", ylabel="share of the images converged")
left.set_xticks([10, 20, 50, 100], ["10", "20", "50", "100"])
left.set_title("Converged to 1e-4", loc="left")
left.legend(loc="lower right")
right.set(yscale="log", xlabel="spectral radius at the solution", ylabel="evaluations")
right.set_yticks([10, 20, 50, 100], ["10", "20", "50", "100"])
right.set_title("597 test images", loc="left")
for axes in (left, right):
    axes.minorticks_off()
print(f"spectral radius: {radius.mean():.2f} on average, {radius.max():.2f} at most")

# %% [markdown]
# ## When the map does not contract
#
# Nothing in the loss asks the block to have a fixed point that is easy to find, and training brings some images
# close to a radius of 1, or beyond. There, solves fall short. That is not hidden: `solution.converged` has an
# answer for each image, `deq.failures` counts solves, and without `on_failure="ignore"` the layer would warn.
# Training goes on: the default gradient, `eq.Guarded()`, is the implicit one where an image converged and a bounded
# one where it did not.
#
# The remedy is to bound the map. `spectral_norm` keeps the largest singular value of a matrix near 1, and the slope
# of `tanh` is at most 1. So an application brings two states closer by a factor of about 0.9: the map contracts,
# and has exactly one fixed point. `DEQ` computes such parametrized weights once per solve, not once per evaluation.

# %%
bounded = make(solver=solver)
spectral_norm(bounded.deq.cell.inner)
spectral_norm(bounded.deq.cell.outer)
logs["bounded"] = fit(bounded)
accuracies["bounded"] = accuracy(bounded(images[test]))

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
for name, label in (("equilibrium", "block as it is"), ("bounded", "spectral_norm")):
    largest, unconverged = np.array(logs[name]).T
    left.plot(range(1, 21), largest, "o-", markersize=3, color=colours[name], label=label)
    right.plot(range(1, 21), unconverged, "o-", markersize=3, color=colours[name], label=label)
left.axhline(1, color="black", linewidth=1, linestyle=":")
left.set(xlabel="epoch", ylabel="largest spectral radius", ylim=(0, None))
left.set_title("597 test images", loc="left")
right.set(xlabel="epoch", ylabel="images unconverged")
right.set_title("1,200 training images", loc="left")
right.legend()
for name in ("equilibrium", "bounded"):
    largest, unconverged = np.array(logs[name]).T
    with torch.no_grad():
        spent = models.get(name, bounded).solve(images[test]).group_evaluations.float().mean()
    print(
        f"{name:12} radius up to {largest.max():.2f}; {unconverged.sum():.0f} of 24,000 solves of an image fell short; "
        f"{spent:.1f} evaluations per test image; accuracy {accuracies[name]:.3f}"
    )

# %% [markdown]
# If a bound is too much, `eq.residual_penalty(solution)` or `eq.jacobian_penalty(f, z)` added to the loss ask for
# contraction more gently.
#
# What can a solver do by itself? Stretch what the trained block adds to `x`, and count the images that do not
# converge within 200 evaluations.

# %%
solvers = {
    "Picard()": eq.Picard(),
    "Picard(damping=0.5)": eq.Picard(damping=0.5),
    "Anderson()": eq.Anderson(),
    "Broyden()": eq.Broyden(),
}
cases = {"bounded": (bounded, 1), "as it is": (model, 1), "x 1.5": (model, 1.5), "x 2": (model, 2)}


def unconverged(method, trained, factor):
    x = trained.encoder(images[test])
    with torch.no_grad():
        solution = eq.fixed_point(
            lambda z: x + factor * (trained.deq.cell(z, x) - x),
            x,
            method,
            tol=1e-4,
            max_evaluations=200,
            on_failure="ignore",
        )
    return int((~solution.converged).sum())


table = {name: {case: unconverged(method, *cases[case]) for case in cases} for name, method in solvers.items()}
print(f"{'images unconverged':22}" + "".join(f"{case:>10}" for case in cases))
for name, row in table.items():
    print(f"{name:22}" + "".join(f"{count:>10}" for count in row.values()))

# %% [markdown]
# A map that contracts is solved by every method. Where it does not, solvers differ, and it pays to try: see [How to
# choose](../docs/how-to-choose.md) for what each status means and what to do about it.
