"""A graph network: labels of two members diffuse through a club until nothing changes."""

import networkx
import torch
from drawing import plt, save
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

import equilibria as eq

torch.manual_seed(0)
karate = networkx.karate_club_graph()  # Zachary 1977: friendships in a club that split in two
club = torch.tensor([int(karate.nodes[member]["club"] == "Officer") for member in karate])
known = torch.tensor([0, 33])  # the instructor and the officer


# --8<-- [start:code]
friends = torch.tensor(networkx.to_numpy_array(karate, weight=None), dtype=torch.float32)
degree = friends.sum(1)
A = friends / (degree[:, None] * degree).sqrt()  # its eigenvalues lie between -1 and 1


class Diffusion(nn.Module):
    def __init__(self, width):
        super().__init__()
        mix = nn.Linear(width, width, bias=False)
        nn.init.eye_(mix.weight)
        self.mix = orthogonal(mix)

    def forward(self, z, x):
        return 0.95 * A @ torch.tanh(self.mix(z)) + x


x = torch.zeros(34, 2)
x[known, club[known]] = 1.0
encoder, head = nn.Linear(2, 8, bias=False), nn.Linear(8, 2, bias=False)
# Nodes depend on each other, so they are solved as one.
deq = eq.DEQ(Diffusion(8), eq.Anderson(tol=1e-4, max_evaluations=100, scope="all"))
# --8<-- [end:code]

optimizer = torch.optim.Adam([*encoder.parameters(), *deq.parameters(), *head.parameters()], lr=1e-2)
for _ in range(100):
    solution = deq(None, encoder(x))
    loss = nn.functional.cross_entropy(head(solution.value)[known], club[known])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def shares(z):
    return head(z).softmax(1)[:, 1]


with torch.no_grad():
    h = encoder(x)
    solution = deq(None, h)
    once = deq.cell(h, h)  # h is the state after one application from zero
    states = {"1 application": h, "2 applications": once, f"Equilibrium ({solution.evaluations} evaluations)": 0}
    states = dict(zip(states, (h, once, solution.value), strict=True))
    found = {name: shares(z) for name, z in states.items()}
right = {name: int(((share > 0.5).long() == club)[(share - 0.5).abs() > 1e-6].sum()) for name, share in found.items()}
untouched = {name: int(((share - 0.5).abs() <= 1e-6).sum()) for name, share in found.items()}

places = networkx.spring_layout(karate, seed=3, iterations=200)
figure, panels = plt.subplots(1, 3, figsize=(7.2, 3.1))
for axes, (name, share) in zip(panels, found.items(), strict=True):
    networkx.draw_networkx_edges(karate, places, ax=axes, edge_color="#cccccc", width=0.7)
    for side, shape in ((0, "o"), (1, "s")):
        members = [member for member in karate if club[member] == side]
        drawn = networkx.draw_networkx_nodes(
            karate,
            places,
            members,
            ax=axes,
            node_shape=shape,
            node_size=[110 if member in known else 45 for member in members],
            node_color=share[members].numpy(),
            cmap="coolwarm",
            vmin=0,
            vmax=1,
            edgecolors="black",
            linewidths=[1.5 if member in known else 0.4 for member in members],
        )
    axes.set_title(f"{name}\n{right[name]} of 34 right, {untouched[name]} not reached", fontsize=9)
    axes.axis("off")
figure.colorbar(drawn, ax=panels, shrink=0.7, ticks=[0, 0.5, 1]).set_label("predicted: square")
print(right, untouched, solution.status)
save(figure, "graph-network")
