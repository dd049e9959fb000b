"""The source of a-state-tracker.ipynb; `python examples/notebooks.py` executes it and writes the notebook."""

# %% [markdown]
# # An equilibrium that keeps a state
#
# Three things stand in a row. You read a list of moves, each of which rearranges them, and after each move you say
# how they stand now. A network that applies a block a fixed number of times can do this for lists as long as those
# it was trained on, and loses track soon after. An equilibrium of the same block, trained on the same lists of 16
# moves, follows 1,000.
#
# The reason: token `t` of a causal equilibrium depends on token `t − 1` *at its solution*, not at some earlier
# layer. The fixed point of the whole list is a recurrence, however long the list is.
#
# It takes one to two minutes on one CPU core. `equilibria demo state-tracking` does the same on the command line,
# with longer training.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import equilibria as eq

plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The task
#
# The six permutations of three things are the group S3. `eq.WordProblem` makes words of its elements, numbered from
# 0 to 5; the target at each position is the product of all elements so far. To guess is to be right one time in
# six.

# %%
task = eq.WordProblem(group="S3", length=16)
words = next(iter(task.split("valid").segments(batch_size=2)))
print("moves: ", *words.inputs[0].tolist())
print("states:", *words.targets[0].tolist())

# %% [markdown]
# ## The model
#
# The package has a recipe for it: a TrellisNet block at its equilibrium. A training step takes 16 evaluations of
# plain iteration (`Picard`) and 8 more through which it takes the gradient (`Phantom`). Half of the recipe's steps
# are enough here. The second model differs in its depth alone: the same block, with as many weights, is applied 24
# times.

# %%
flags = ["--training.steps", "400", "--training.evaluate_every", "400", "--training.threads", "1"]
recipe = eq.read_recipe("state-tracking/s3-trellisnet", flags, eq.RunRecipe(name="equilibrium"))
fixed = replace(
    recipe,
    run=eq.RunRecipe(name="24-applications"),
    model=replace(recipe.model, depth=eq.UnrolledDepth(24)),
)
print(recipe.model.depth.solver)
print(recipe.model.depth.gradient)

# %%
results = {one.run.name: eq.train(one) for one in (recipe, fixed)}
models = {name: eq.load(result.folder) for name, result in results.items()}
for name, model in models.items():
    print(f"{name:16} {sum(p.numel() for p in model.parameters()):,} parameters")

# %% [markdown]
# ## Reading 1,000 moves
#
# Decoding reads one token after another and keeps what later tokens need in a cache. Each token is solved by
# itself, given the solutions before it. We read 16 words of 1,000 that no model has seen. Beside the two models we
# take the weights of the equilibrium and apply them 24 times instead of solving.

# %%
long = replace(task, valid_length=1000, held_out=16)
words = next(iter(long.split("valid").segments(batch_size=16)))


@torch.no_grad()
def follow(model, depth=None):
    """Where the answers are right, (words, positions), and the evaluations of each position."""
    right, evaluations, step = [], [], None
    for place, move in enumerate(words.inputs.unbind(1)):
        if step is None:
            step = model.prefill(move.unsqueeze(1), depth=depth)
        else:
            step = model.decode(move, step.cache, depth=depth)
        right.append(step.logits_BV.argmax(-1) == words.targets[:, place])
        if step.solution is not None:
            evaluations.append(float(step.solution.group_evaluations.float().mean()))
    return torch.stack(right, 1).numpy(), np.array(evaluations)


right, evaluations = {}, {}
right["equilibrium"], evaluations = follow(models["equilibrium"])
right["24 applications"], _ = follow(models["24-applications"])
right["weights of the equilibrium, 24 applications"], _ = follow(models["equilibrium"], depth=eq.UnrolledDepth(24))

print(f"{'right answers at':44} {'1-16':>6} {'17-32':>6} {'33-64':>6} {'65-1000':>8}   whole words")
for name, one in right.items():
    spans = [f"{one[:, a:b].mean():.3f}" for a, b in ((0, 16), (16, 32), (32, 64), (64, 1000))]
    print(f"{name:44} {spans[0]:>6} {spans[1]:>6} {spans[2]:>6} {spans[3]:>8}   {one.all(1).sum()} of {len(one)}")

# %%
figure, (left, whole) = plt.subplots(1, 2, figsize=(7.5, 3.2), layout="constrained", sharey=True)
styles = dict(zip(right, ("tab:blue", "tab:orange", "tab:cyan"), strict=True))
for name, one in right.items():
    share = one.mean(0)
    left.plot(range(1, 65), share[:64], color=styles[name], linewidth=1.5)
    smooth = np.convolve(share, np.full(50, 1 / 50), mode="valid")
    whole.plot(np.arange(50, 1001), smooth, color=styles[name], linewidth=1.5, label=name)
for axes in (left, whole):
    axes.axvline(16, color="grey", linestyle=":")
    axes.axhline(1 / 6, color="grey", linestyle="--", linewidth=1)
left.annotate("length in \ntraining ", (16, 0.45), color="grey", fontsize=8, ha="right")
left.annotate("chance", (1, 0.18), color="grey", fontsize=8)
left.set(xlabel="position", ylabel="right answers", ylim=(0, 1.05), xlim=(0, 64))
left.set_title("The first 64 moves", loc="left")
whole.set(xlabel="position (means of 50)", xlim=(0, 1000))
whole.set_title("All 1,000", loc="left")
figure.legend(loc="outside lower left", ncols=2, fontsize=8)
print(f"decoding takes {evaluations.mean():.1f} evaluations per token, at most {evaluations.max():.1f}")

# %% [markdown]
# Within the length of training all three are right. Beyond it, 24 applications are at chance from about 32 on,
# whether the weights were trained so or not. The equilibrium is right throughout.
#
# ## What depth costs
#
# Decoding is cheap: a token needs a few evaluations, as its predecessors are already solved. Solving a whole word
# at once is another matter. There, the state has to travel from the first token to the last, so evaluations grow
# with the length. No number of applications that is fixed in advance would do.

# %%
model = models["equilibrium"]
print("length  evaluations  right at the end")
grown = {}
for length in (16, 32, 64, 128, 256):
    with torch.no_grad():
        output = model(words.inputs[:, :length])
    grown[length] = output.solution.evaluations
    last = (output.logits[:, -1].argmax(-1) == words.targets[:, length - 1]).float().mean()
    print(f"{length:6}  {grown[length]:11}  {last:.3f}")

# %% [markdown]
# With the recipe's 800 steps and five seeds, the same model is right at the end of 10,000 moves each time
# ([benchmarks](../docs/benchmarks.md#following-a-state)). The same works with a transformer as the block:
# `state-tracking/s3-transformer`.
