"""The source of what-the-gradient-does.ipynb; `python examples/notebooks.py` executes it and writes the notebook."""

# %% [markdown]
# # What the gradient does
#
# A solver finds `z* = f(z*; θ)`. To train `θ` we need `dL/dθ` for a loss `L(z*)`. There are several ways, and this
# notebook holds each of them against finite differences, in float64, on a map small enough to look at:
#
# | gradient | what it does | what it stores |
# | --- | --- | --- |
# | `eq.Implicit()` | solves `v = Jᵀv + g` at the solution: the implicit function theorem | one evaluation |
# | `eq.Neumann(k)` | the first `k` terms of its series; `eq.JacobianFree()` is one term | one evaluation |
# | `eq.Phantom(k)` | `k` more steps from the solution, differentiated as they are | `k` evaluations |
# | `eq.Unrolled(k)` | `k` steps from the start, differentiated as they are | `k` evaluations |
# | `eq.Reversible(k)` | the same for an iteration that can be run backwards | its last two states, whatever `k` |
#
# It takes less than half a minute on one CPU core.

# %%
import matplotlib.pyplot as plt
import torch

import equilibria as eq

plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
colours = {
    "Implicit": "tab:blue",
    "Neumann": "tab:purple",
    "Phantom": "tab:red",
    "Unrolled": "tab:orange",
    "Reversible": "tab:green",
}
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The map and the reference
#
# `z ← tanh(W z + x)` with 24 variables. `W` is a random matrix, scaled so that its spectral radius is 0.9.

# %%
n = 24
W = torch.randn(n, n)
W = 0.9 * W / torch.linalg.eigvals(W).abs().max()
x = 0.3 * torch.randn(n)
target = torch.randn(n)


def step(z, W):
    return torch.tanh(W @ z + x[:, None])


def loss(z):
    return (z.squeeze(-1) - target).square().sum(-1)


def iterate(W, steps):
    z = torch.zeros(*W.shape[:-1], 1)
    for _ in range(steps):
        z = step(z, W)
    return z


def radius(W):
    return eq.spectral_radius(lambda z: step(z, W), iterate(W, 1000), iterations=n)


print(f"spectral radius at the solution: {radius(W):.3f}")

# %% [markdown]
# Finite differences change each entry of `W` in turn by ±1e-5 and compute everything anew. `solve` stands for
# whatever is computed: here, 1,000 steps of plain iteration, which is the solution to the last digit.


# %%
def finite_differences(solve, h=1e-5):
    changes = h * torch.eye(n * n).view(n * n, n, n)  # one entry each
    return ((loss(solve(W + changes)) - loss(solve(W - changes))) / (2 * h)).view(n, n)


reference = finite_differences(lambda W: iterate(W, 1000))


def error(gradient, reference=reference):
    return float(torch.linalg.norm(gradient - reference) / torch.linalg.norm(reference))


def gradient_of(how, solver, W=W):
    weights = W.clone().requires_grad_()
    solution = eq.fixed_point(lambda z: step(z, weights), torch.zeros(n, 1), solver, how, on_failure="ignore")
    loss(solution.value).backward()
    return weights.grad


tight = eq.Picard(tol=1e-14, max_evaluations=1000, scope="all")
exact = eq.Implicit(eq.GMRES(tol=1e-14, max_evaluations=200))
agreement = error(gradient_of(exact, tight))
print(f"Implicit, solved as exactly as it goes, against finite differences: {agreement:.0e}")

# %% [markdown]
# The two agree to as many digits as finite differences have. So the implicit function theorem does what it says,
# and the reference can be trusted.
#
# ## Error against steps and tolerance
#
# Gradients that take steps come nearer with every one. `Implicit` takes tolerances instead: that of the forward
# solve, and that of the adjoint equation.

# %%
steps = (1, 2, 4, 8, 16, 32, 64, 128)
stepped = {
    "Neumann": [error(gradient_of(eq.Neumann(k), tight)) for k in steps],
    "Phantom": [error(gradient_of(eq.Phantom(k), tight)) for k in steps],
    "Unrolled": [error(gradient_of(eq.Unrolled(k), tight)) for k in steps],
    "Reversible": [error(gradient_of(eq.Reversible(k, keep_every=32), tight)) for k in steps],
}
tolerances = [10.0**-k for k in range(1, 11)]
forward = [error(gradient_of(exact, eq.Picard(tol=tol, max_evaluations=1000, scope="all"))) for tol in tolerances]
adjoint = [error(gradient_of(eq.Implicit(eq.GMRES(tol=tol, max_evaluations=200)), tight)) for tol in tolerances]

figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.4), layout="constrained", sharey=True)
marks = {"Neumann": "s", "Phantom": ".", "Unrolled": "o", "Reversible": "o"}
for name, errors in stepped.items():
    left.loglog(steps, errors, marker=marks[name], markersize=5, color=colours[name], label=name)
left.set(xlabel="steps or terms", ylabel="relative error of dL/dW")
left.set_xticks(steps, [str(k) for k in steps])
left.minorticks_off()
left.set_title("Gradients that take steps", loc="left")
left.legend()
right.loglog(tolerances, forward, "o-", markersize=4, color="tab:blue", label="of the forward solve")
right.loglog(tolerances, adjoint, "s--", markersize=4, color="tab:cyan", label="of the adjoint equation")
right.invert_xaxis()
right.set(xlabel="tolerance")
right.set_title("Implicit", loc="left")
right.legend()
for name, errors in stepped.items():
    print(f"{name:11}" + "  ".join(f"{k}: {one:.0e}" for k, one in zip(steps, errors, strict=True)))
print(f"Implicit   forward tolerance 1e-3: {forward[2]:.0e}, adjoint tolerance 1e-3: {adjoint[2]:.0e}")

# %% [markdown]
# - `Neumann` and `Phantom` lie on one line: at the solution, `k` steps differentiated are `k` terms of the series.
#   They differ in what they store, and in that `Phantom` moves the value along.
# - `Unrolled` needs more steps, as it also has to get to the solution. `Reversible` needs more still: each step
#   averages with the state before the last.
# - `Implicit` is as exact as its two tolerances.
#
# ## The gradient of the solution, or of what was computed?
#
# So far everything was measured against the exact solution. Now stop after 8 evaluations, far from converged, and
# ask each gradient twice: how far from that of the exact solution, and how far from that of *what was computed*, by
# finite differences through those very steps.


# %%
def reversible_iteration(W, steps, damping=0.8):
    before = z = torch.zeros(*W.shape[:-1], 1)
    for _ in range(steps):
        before, z = z, (1 - damping) * before + damping * step(z, W)
    return z


k = 8
short = eq.Picard(tol=1e-14, max_evaluations=k, scope="all")
cases = {
    "Implicit": (exact, lambda W: iterate(W, k)),
    "Unrolled": (eq.Unrolled(k), lambda W: iterate(W, k)),
    "Reversible": (eq.Reversible(k), lambda W: reversible_iteration(W, k)),
}
stopped = {}
print(f"{'8 evaluations':14} {'against the solution':>22} {'against what was computed':>28}")
for name, (how, computed) in cases.items():
    found = gradient_of(how, short)
    stopped[name] = error(found), error(found, finite_differences(computed))
    print(f"{name:14} {stopped[name][0]:22.0e} {stopped[name][1]:28.0e}")

# %% [markdown]
# `Unrolled` and `Reversible` give the exact gradient of a truncated computation. `Implicit` gives neither: it is
# the gradient of a solution that was not reached. Where solves often fall short, this matters; the default of
# `eq.DEQ`, `eq.Guarded()`, takes `Implicit` where a sample converged and a few terms of the series where it did
# not.
#
# ## The price
#
# What autograd stores for the backward pass, for a state of 64 × 256 numbers and a map of two matrices.

# %%
inner, outer = torch.randn(2, 256, 256) / 32
inner.requires_grad_()
outer.requires_grad_()
inputs = torch.randn(64, 256)


def stored(how):
    def run():
        solver = eq.Picard(max_evaluations=20)
        return eq.fixed_point(
            lambda z: inputs + torch.tanh(z @ inner) @ outer,
            torch.zeros_like(inputs),
            solver,
            how,
            on_failure="ignore",
        ).value

    return eq.saved_bytes(run, [inner, outer, inputs]) / 1e6


counts = (1, 2, 4, 8, 16, 32)
memory = {
    "Implicit": [stored(eq.Implicit())] * len(counts),
    "Neumann": [stored(eq.Neumann(k)) for k in counts],
    "Phantom": [stored(eq.Phantom(k)) for k in counts],
    "Unrolled": [stored(eq.Unrolled(k)) for k in counts],
    "Unrolled, checkpoint=True": [stored(eq.Unrolled(k, checkpoint=True)) for k in counts],
    "Reversible": [stored(eq.Reversible(k)) for k in counts],
}
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
styles = {"Phantom": "s--", "Unrolled, checkpoint=True": "^:", "Neumann": "s"}
for name, megabytes in memory.items():
    colour = colours[name.partition(",")[0]]
    axes.loglog(counts, megabytes, styles.get(name, "o-"), markersize=5, color=colour, label=name)
axes.set(xlabel="steps or terms", ylabel="MB stored")
axes.set_xticks(counts, [str(k) for k in counts])
axes.set_yticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
axes.minorticks_off()
axes.set_title("Stored for the backward pass", loc="left")
axes.legend(fontsize=8)
for name, megabytes in memory.items():
    print(f"{name:26}" + "  ".join(f"{k}: {one:.2f}" for k, one in zip(counts, megabytes, strict=True)))

# %% [markdown]
# `Implicit` and `Neumann` store one evaluation, whatever the solve took. `Unrolled` and `Phantom` store every step
# they differentiate; with `checkpoint=True` only the state between steps, at the price of computing each step
# again. `Reversible` computes its way back and stores about as much for 32 steps as for one.
#
# ## How good are cheap gradients?
#
# That depends on the spectral radius at the solution, since what the series leaves out after `k` terms shrinks like
# its `k`-th power.

# %%
cheap = {
    "JacobianFree()": (eq.JacobianFree(), "tab:purple", ":"),
    "Phantom(5)": (eq.Phantom(5), "tab:red", "-"),
    "Phantom(20)": (eq.Phantom(20), "tab:red", "--"),
    "Implicit()": (eq.Implicit(), "tab:blue", "-"),
}
curves, at = {name: [] for name in cheap}, []
for scale in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.05, 1.1):
    scaled = scale * W
    at.append(radius(scaled))
    true = gradient_of(exact, tight, scaled)
    for name, (how, _, _) in cheap.items():
        curves[name].append(error(gradient_of(how, tight, scaled), true))

figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
for name, (_, colour, line) in cheap.items():
    axes.semilogy(at, curves[name], line, marker="o", markersize=4, color=colour, label=name)
axes.set(xlabel="spectral radius at the solution", ylabel="relative error of dL/dW")
axes.set_title("The nearer to 1, the more a short series leaves out", loc="left")
axes.legend(fontsize=8)
for name, errors in curves.items():
    print(f"{name:15} at radius {at[0]:.2f}: {errors[0]:.0e}   at {at[-1]:.2f}: {errors[-1]:.0e}")

# %% [markdown]
# ## On your own map
#
# `eq.gradient_error` compares a gradient with the converged implicit one, tensor by tensor, in one call.

# %%
weights = W.clone().requires_grad_()
judged = eq.gradient_error(
    lambda z: step(z, weights),
    torch.zeros(n, 1),
    eq.Anderson(tol=1e-3, scope="all"),
    eq.Phantom(5),
    parameters={"W": weights},
)
print(judged["W"])

# %% [markdown]
# Which gradient to take when: [How to choose](../docs/how-to-choose.md#gradient). A gradient of your own is a class
# with one method: [Adding a gradient](../docs/adding-a-gradient.md).
