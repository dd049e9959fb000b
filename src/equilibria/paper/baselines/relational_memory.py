"""The relational memory core (Santoro et al. 2018, arXiv:1806.01822): slots that attend to each other and the input.

    e = W_x x_t + b_x
    A = softmax(M W_q ([M; e] W_k)ᵀ / √E) [M; e] W_v       per head, M the slots
    N = LN(M + A),   N = LN(N + MLP(N)),  rectifiers between the layers of the MLP
    i, f = σ(U tanh(M) + W e + (0, 1))
    M ← f ⊙ M + i ⊙ tanh(N),   output = W_o [all slots]

Gates as in the authors' code, which has no output gate.
Shapes: B batch, L length, N slots, D features of a slot, H heads, E head size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.paper.baselines.base import Layer, State
from equilibria.ranges import one_of, whole

Gates = Literal["unit", "slot"]


class RelationalMemoryLayer(Layer):
    """One relational memory core. Its state is the slots, `(B, slots, heads · head_size)`.

    Args:
        d_in, d_out: features of the input, and of the output, a projection of all slots.
        slots: rows of the memory.
        heads: attention heads.
        head_size: features of a head.
        gates: one gate per feature ("unit") or per slot ("slot").
        mlp_layers: of the network that follows the attention, all of the slots' width.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        slots: int = 4,
        heads: int = 4,
        head_size: int = 64,
        gates: Gates = "unit",
        mlp_layers: int = 2,
    ) -> None:
        whole(1, slots=slots, heads=heads, head_size=head_size, mlp_layers=mlp_layers)
        one_of(Gates, gates=gates)
        width = heads * head_size
        gate = width if gates == "unit" else 1
        super().__init__(d_in, d_out, (slots, width))
        self.slots, self.heads, self.width = slots, heads, width
        self.inject = nn.Linear(d_in, width)
        self.queries = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        self.attention_norm = nn.LayerNorm(width)
        self.mlp = nn.ModuleList(nn.Linear(width, width) for _ in range(mlp_layers))
        self.feed_forward_norm = nn.LayerNorm(width)
        self.input_gates, self.memory_gates = nn.Linear(width, 2 * gate), nn.Linear(width, 2 * gate, bias=False)
        with torch.no_grad():
            self.input_gates.bias.copy_(torch.tensor([0.0, 1.0]).repeat_interleave(gate))
        self.output = nn.Linear(slots * width, d_out)

    def start(self, x_BLD: Tensor) -> State:
        """The rows of the identity: slots must differ."""
        rows = torch.eye(self.slots, self.width, device=x_BLD.device, dtype=x_BLD.dtype)
        return (rows.expand(x_BLD.shape[0], -1, -1),)

    def forward(self, x_BLD: Tensor, state: State) -> tuple[Tensor, State]:
        (memory_BND,) = state
        injected_BLD = self.inject(x_BLD)
        gates_BLG = self.input_gates(injected_BLD)
        memories = []
        for injected_BD, gates_BG in zip(injected_BLD.unbind(1), gates_BLG.unbind(1), strict=True):
            proposal_BND = torch.tanh(self._attend(memory_BND, injected_BD.unsqueeze(1)))
            gates_BNG = torch.sigmoid(gates_BG.unsqueeze(1) + self.memory_gates(torch.tanh(memory_BND)))
            enter, keep = gates_BNG.chunk(2, dim=-1)
            memory_BND = keep * memory_BND + enter * proposal_BND
            memories.append(memory_BND)
        return self.output(torch.stack(memories, dim=1).flatten(-2)), (memory_BND,)

    def _attend(self, memory_BND: Tensor, injected_B1D: Tensor) -> Tensor:
        """What the slots would become: attention and a feed-forward network, each with its residual and norm."""
        seen = torch.cat([memory_BND, injected_B1D], dim=1)
        q_BHNE = self.queries(memory_BND).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.keys_values(seen).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BND = F.scaled_dot_product_attention(q_BHNE, k, v).transpose(1, 2).flatten(-2)
        attended_BND = self.attention_norm(memory_BND + mixed_BND)
        first, *others = self.mlp
        fed_BND = first(attended_BND)
        for layer in others:
            fed_BND = layer(F.relu(fed_BND))
        return self.feed_forward_norm(attended_BND + fed_BND)
