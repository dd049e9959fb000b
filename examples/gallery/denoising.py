"""Denoising at equilibrium: a learned step between the noisy image and a clean one, repeated until nothing changes."""

import torch
from drawing import BLUE, GREY, plt, save
from sklearn.datasets import load_digits
from torch import nn

import equilibria as eq

torch.manual_seed(0)
clean = torch.tensor(load_digits().data, dtype=torch.float32)[torch.randperm(1797)] / 16
noisy = clean + 0.4 * torch.randn(clean.shape)
train, test = slice(0, 1400), slice(1400, 1797)


# --8<-- [start:code]
class Step(nn.Module):
    """A step towards the noisy image y, then one that a network has learned to take towards clean images."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.3))
        self.prior = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))

    def forward(self, z, y):
        z = z + self.rate * (y - z)
        return z + 0.5 * self.prior(z)


deq = eq.DEQ(Step(), eq.Anderson(tol=1e-3))
optimizer = torch.optim.Adam(deq.parameters(), lr=1e-3)
for _ in range(25):
    for rows in torch.randperm(1400).split(100):
        y = clean[rows] + 0.4 * torch.randn(100, 64)
        solution = deq(y, y)  # start from the noisy image
        loss = (solution.value - clean[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
# --8<-- [end:code]


def decibels(images):
    return float(-10 * (images - clean[test]).square().mean().log10())


deq.eval()
with torch.no_grad():
    y = noisy[test]
    solution = deq(y, y)
    steps = [y]
    for _ in range(20):
        steps.append(deq.cell(steps[-1], y))
quality = [decibels(z) for z in steps]
solved = decibels(solution.value)

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6), width_ratios=(1.3, 1))
rows = {"noisy": y, "1 step": steps[1], "3 steps": steps[3], "equilibrium": solution.value, "clean": clean[test]}
tiles = torch.stack([nn.functional.pad(images[:9].view(9, 8, 8), (1, 1, 1, 1)) for images in rows.values()])
left.imshow(tiles.transpose(1, 2).reshape(50, 90).numpy(), cmap="gray_r", vmin=0, vmax=1)
left.set_xticks([])
left.set_yticks(range(5, 50, 10), rows)
left.tick_params(length=0)
left.spines[:].set_visible(False)
axes = right
axes.plot(range(21), quality, "o-", color=BLUE, markersize=3, label="step by step")
axes.axhline(solved, color=GREY, linestyle="--", linewidth=1, label=f"equilibrium: {solved:.1f} dB")
axes.set(xlabel="steps", ylabel="PSNR on 397 test images, dB", xticks=[0, 5, 10, 15, 20])
axes.grid(alpha=0.3)
axes.legend(loc="lower right")
print(f"noisy {quality[0]:.1f} dB, steps {quality[1]:.1f} {quality[3]:.1f} {quality[20]:.1f}, solved {solved:.1f} dB")
print(solution.explain())
save(figure, "denoising")
