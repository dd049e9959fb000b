"""An implicit neural representation: a photograph as a function of coordinates, read off at an equilibrium."""

import numpy as np
import torch
from drawing import BLUE, ORANGE, plt, save
from matplotlib import cbook
from PIL import Image
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

import equilibria as eq

SIZE = 48
photo = Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("L")  # comes with matplotlib
photo = photo.crop((96, 10, 436, 350)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
brightness = torch.tensor(np.array(photo), dtype=torch.float32).flatten() / 255
ticks = torch.linspace(-1, 1, SIZE)
coordinates = torch.cartesian_prod(ticks, ticks)


# --8<-- [start:code]
class Cell(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = orthogonal(nn.Linear(width, width))

    def forward(self, z, x):
        return torch.sin(0.9 * self.linear(z) + x)


class Picture(nn.Module):
    def __init__(self, width=64, **options):
        super().__init__()
        self.encoder, self.head = nn.Linear(2, width), nn.Linear(width, 1)
        nn.init.uniform_(self.encoder.weight, -20, 20)
        nn.init.uniform_(self.encoder.bias, -3, 3)
        self.deq = eq.DEQ(Cell(width), eq.Anderson(tol=1e-2), on_failure="ignore", **options)

    def forward(self, coordinates):
        x = self.encoder(coordinates)
        self.solution = self.deq(x.sin(), x)
        return self.head(self.solution.value)[:, 0]


# --8<-- [end:code]


def fit(picture, steps=400):
    optimizer = torch.optim.Adam(picture.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    generator, quality = torch.Generator().manual_seed(0), []
    for number in range(1, steps + 1):
        rows = torch.randperm(SIZE**2, generator=generator)[:768]
        loss = (picture(coordinates[rows]) - brightness[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if number % 40 == 0:
            quality.append((number, -10 * float((picture(coordinates) - brightness).detach().square().mean().log10())))
    return quality


contenders = {
    "equilibrium": (eq.Phantom(2), BLUE),
    "applied once": (eq.Unrolled(1), ORANGE),
}
curves, drawn, spent = {}, {}, {}
for name, (gradient, _) in contenders.items():
    torch.manual_seed(0)
    picture = Picture(gradient=gradient)
    curves[name] = fit(picture)
    drawn[name] = picture(coordinates).detach().view(SIZE, SIZE)  # with gradients on: with them off, a DEQ solves
    spent[name] = picture.solution.evaluations

figure = plt.figure(figsize=(7.2, 2.4))
left, right = figure.subfigures(1, 2, width_ratios=(1.7, 1))
images = {"photograph": brightness.view(SIZE, SIZE), **drawn}
for axes, (name, image) in zip(left.subplots(1, 3), images.items(), strict=True):
    axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
    what = f"{curves[name][-1][1]:.1f} dB" if name in curves else f"{SIZE} × {SIZE} pixels"
    axes.set_title(f"{name}\n{what}", fontsize=8)
    axes.axis("off")
axes = right.subplots()
for name, (_, colour) in contenders.items():
    axes.plot(*zip(*curves[name], strict=True), color=colour, label=name)
axes.set(xlabel="training steps", ylabel="PSNR, dB")
axes.grid(alpha=0.3)
axes.legend(fontsize=7)
print({name: round(curve[-1][1], 1) for name, curve in curves.items()}, spent)
save(figure, "implicit-representation")
