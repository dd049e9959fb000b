"""A classifier: two spirals, and where in the plane the equilibrium takes longer to find."""

import torch
from drawing import plt, save
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

import equilibria as eq

torch.manual_seed(0)
side = torch.arange(300) % 2
turn = torch.rand(300).sqrt() * 2.2 * torch.pi
angle = turn + side * torch.pi
points = turn[:, None] / (2.2 * torch.pi) * torch.stack([angle.cos(), angle.sin()], 1) + 0.03 * torch.randn(300, 2)


# --8<-- [start:code]
class Cell(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = orthogonal(nn.Linear(width, width))

    def forward(self, z, x):
        return torch.tanh(0.95 * self.linear(z) + x)


encoder, head = nn.Linear(2, 32), nn.Linear(32, 2)
nn.init.uniform_(encoder.weight, -2, 2)
deq = eq.DEQ(Cell(32), eq.Anderson(tol=1e-2))

optimizer = torch.optim.Adam([*encoder.parameters(), *deq.parameters(), *head.parameters()], lr=2e-2)
for _ in range(150):
    solution = deq(None, encoder(points))
    loss = nn.functional.cross_entropy(head(solution.value), side)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
# --8<-- [end:code]

ticks = torch.linspace(-1.2, 1.2, 161)
with torch.no_grad():
    accuracy = float((head(deq(None, encoder(points)).value).argmax(1) == side).float().mean())
    solution = deq(None, encoder(torch.cartesian_prod(ticks, ticks)), tol=1e-3, max_evaluations=100)
    share = head(solution.value).softmax(1)[:, 1].view(161, 161).T.numpy()
evaluations = solution.group_evaluations.view(161, 161).T.numpy()
ticks = ticks.numpy()

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.3))
left.contourf(ticks, ticks, share, levels=[0, 0.25, 0.5, 0.75, 1], colors=["#c6dbef", "#deebf7", "#fee6ce", "#fdd0a2"])
left.scatter(*points[side == 0].T.numpy(), color="tab:blue", s=6)
left.scatter(*points[side == 1].T.numpy(), color="tab:orange", s=6)
left.set_title(f"Two spirals, {accuracy:.0%} of 300 points right")
shown = right.imshow(evaluations, origin="lower", extent=(-1.2, 1.2, -1.2, 1.2), cmap="viridis_r")
right.set_title("Evaluations to a residual of 1e-3")
figure.colorbar(shown, ax=right, shrink=0.9)
for axes in (left, right):
    axes.set(aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1], xlabel="first coordinate")
left.set_ylabel("second coordinate")
print(f"accuracy {accuracy:.3f}; evaluations from {evaluations.min()} to {evaluations.max()}")
save(figure, "classifier")
