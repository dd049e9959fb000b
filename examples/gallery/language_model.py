"""A language model: text shaded by the evaluations that each token took."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from drawing import plt, save
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.patches import Rectangle

import equilibria as eq

TEXT = """\
If the optional second argument is given, it must be a function that takes one argument and returns a string. \
The default value is None. Note that the order of the keys in the dictionary is not changed by this method; \
use sorted() to return a new list. Raises ValueError if the file does not exist."""

folder = TemporaryDirectory()
run = eq.RunRecipe(name="shaded", directory=Path(folder.name))

# --8<-- [start:code]
# The recipe of `equilibria demo`, made smaller; it learns from the documentation that comes with Python.
flags = """
    --model.cell.d_model 64 --model.cell.heads 2 --model.cell.inner 256 --model.coda_inner 256
    --data.tokenizer.vocabulary_size 1024 --training.segment_length 64 --training.batch_size 8
    --training.steps 250 --training.evaluate_every 250 --training.checkpoint_every 250
"""
recipe = eq.read_recipe("demo", flags.split(), run)
eq.train(recipe)

loaded = eq.load_run(recipe.run.folder)
tokens = loaded.tokenizer.encode(TEXT)
with torch.no_grad():
    output = loaded.model(torch.tensor([tokens]))
evaluations = output.solution.group_evaluations[0].tolist()  # of each token
pieces = [loaded.tokenizer.decode([token]) for token in tokens]
# --8<-- [end:code]
folder.cleanup()

WIDTH = 68  # characters of a line
PALEST, DARKEST = 0.03, 0.6
colours = plt.get_cmap("YlGnBu")
least, most = min(evaluations), max(evaluations)
lines = [[]]  # of (column, text, evaluations)
for piece, count in zip(pieces, evaluations, strict=True):
    column = sum(len(text) for _, text, _ in lines[-1])
    if column + len(piece) > WIDTH:
        lines.append([])
        piece, column = piece.lstrip(), 0
    lines[-1].append((column, piece, count))


def share(count):
    """Where on the scale of colours: on its lighter part, on which black letters can be read."""
    return PALEST + (DARKEST - PALEST) * (count - least) / max(1, most - least)


figure, axes = plt.subplots(figsize=(7.2, 0.3 * len(lines) + 0.8))
for row, line in enumerate(lines):
    for column, text, count in line:
        axes.add_patch(Rectangle((column, row - 0.5), len(text), 1, color=colours(share(count)), linewidth=0))
        for place, letter in enumerate(text, start=column):
            axes.text(place + 0.5, row, letter, family="monospace", fontsize=9, ha="center", va="center")
axes.set(xlim=(0, WIDTH), ylim=(len(lines) - 0.4, -0.6))
axes.axis("off")
scale = ScalarMappable(Normalize(least, most), ListedColormap(colours(np.linspace(PALEST, DARKEST, 128))))
bar = figure.colorbar(scale, ax=axes, orientation="horizontal", aspect=40, fraction=0.1, pad=0.04)
bar.set_label("evaluations of each token")
bar.ax.set_xticks([least, (least + most) // 2, most])
print(f"evaluations from {least} to {most}; {output.solution.explain()}")
save(figure, "language-model")
