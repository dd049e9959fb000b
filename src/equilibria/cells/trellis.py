"""The TrellisNet cell (Bai, Kolter and Koltun 2018, arXiv:1810.06682), the one of DEQ-TrellisNet (arXiv:1909.01377).

u   = W_x [x_{t−d}, x_t] + b                                     once per solve
i, o, g, f = u + W_h [h_{t−d}, h_t]
c'_t = σ(f) c_{t−d} + σ(i) tanh(g),   h'_t = σ(o) tanh(c'_t)

The state is `[h; c]`. One application is one level of a TrellisNet: `n` of them are a TrellisNet of `n` levels with
tied weights, in which a token sees `n · d` tokens back; at equilibrium it sees them all. The last `d` states and inputs
of the memory precede the segment, zeros without one.

With `scan`, `c_{t−d}` is that of the same evaluation and not of the one before: given the gates, `c` follows from a
linear recurrence, solved exactly. The equilibria are the same, and what had to travel from token to token through `c`,
one evaluation per step, takes one evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from equilibria.cells.base import BoundMap, Cell, Memory, Past
from equilibria.cells.cache import CacheView, Entry
from equilibria.nn.convolution import delayed, last, linear_recurrence, pairs
from equilibria.nn.dropout import drop_connect, dropout_mask, masked
from equilibria.nn.normalisation import Normalisation, normalised, used_weight
from equilibria.ranges import at_least, probability, whole


class TrellisCell(Cell):
    """A gated causal convolution of kernel 2, the same at every level, into which the input is injected.

    A memory of at least `dilation` tokens makes segments solved one after another the same as one long segment.

    Args:
        d_model: features of the embedded inputs.
        hidden: features of `h` besides those that are the output.
        output_size: features of the output, the last ones of `h`; as many as `d_model` when None.
        dilation: how far back the earlier tap looks.
        dropout: probability of dropping a feature of `h` before the convolution, at all tokens and evaluations of a
            solve alike; not from the memory.
        weight_dropout: probability of dropping an entry of the recurrent weight, once per solve; with
            `normalisation="weight"` its rows keep their norms.
        normalisation: of both weights, per output over both taps; published with `"weight"`.
        recurrent_std: standard deviation of the recurrent weight and of the bias at the start; published with 0.01.
            The input's weight starts as PyTorch's layers do.
        scan: solve the recurrence of `c` in every evaluation. An equilibrium needs fewer evaluations; a fixed number
            of applications is no longer a TrellisNet.
    """

    remembered = 2

    def __init__(
        self,
        d_model: int = 128,
        hidden: int = 320,
        output_size: int | None = None,
        dilation: int = 1,
        dropout: float = 0.0,
        weight_dropout: float = 0.0,
        normalisation: Normalisation = "none",
        recurrent_std: float = 0.01,
        scan: bool = False,
    ) -> None:
        super().__init__()
        self.d_model, self._output_size = d_model, d_model if output_size is None else output_size
        whole(1, d_model=d_model, output_size=output_size, dilation=dilation)
        whole(0, hidden=hidden)
        at_least(0, recurrent_std=recurrent_std)
        probability(dropout=dropout, weight_dropout=weight_dropout)
        self.hidden, self.dilation = hidden, dilation
        self.dropout, self.weight_dropout = dropout, weight_dropout
        self.normalisation: Normalisation = normalisation
        self.scan = scan
        size = hidden + self.output_size
        inject, recur = nn.Linear(2 * d_model, 4 * size), nn.Linear(2 * size, 4 * size, bias=False)
        nn.init.normal_(recur.weight, std=recurrent_std)
        nn.init.normal_(inject.bias, std=recurrent_std)
        self.inject, self.recur = normalised(inject, normalisation), normalised(recur, normalisation)

    def initial_state(self, inputs_BLD: Tensor) -> Tensor:
        """Zeros, `(B, L, 2H)`."""
        B, L, _ = inputs_BLD.shape
        return inputs_BLD.new_zeros(B, L, 2 * (self.hidden + self.output_size))

    @property
    def output_size(self) -> int:
        return self._output_size

    @property
    def cached(self) -> tuple[Entry, ...]:
        return (2 * (self.hidden + self.output_size),), (self.d_model,)

    @property
    def reach(self) -> int:
        return self.dilation

    def readout(self, z: Tensor) -> Tensor:
        """What a softmax reads of a state, `(B, L, output_size)`: the last features of `h`."""
        return z[..., self.hidden : self.hidden + self.output_size]

    def bind(self, inputs_BLD: Tensor, past: Past = None) -> TrellisMap:
        if isinstance(past, CacheView):
            return self._over_a_cache(inputs_BLD, past)
        if past is None:
            past = Memory((self.initial_state(inputs_BLD[:, :0]), inputs_BLD[:, :0]))
        states, inputs = (last(part, self.dilation) for part in past.states)
        hidden_history, cell_history = states.chunk(2, dim=-1)
        recurrent = drop_connect(
            used_weight(self.recur), self.weight_dropout, self.training, keep_norms=self.normalisation == "weight"
        )
        return TrellisMap(
            self,
            inputs_BLD=inputs_BLD,
            injection_BLG=self.inject(pairs(inputs_BLD, inputs)),
            weight_GP=recurrent,
            hidden_history_BdH=hidden_history,
            cell_history_BdH=cell_history,
            dropout_B1H=dropout_mask(hidden_history[:, :1], self.dropout, self.training),
        )

    def _over_a_cache(self, inputs_BLD: Tensor, view: CacheView) -> TrellisMap:
        states, inputs = view.tensors
        past, present_BS = view.place.past, view.place.present_BS
        bound = self.bind(inputs_BLD, Memory((states[:, :past], inputs[:, :past])))
        inputs[:, past:] = inputs_BLD
        present_BL1 = None if present_BS is None else present_BS[:, past:].unsqueeze(-1)
        return replace(bound, present_BL1=present_BL1, room=states[:, past:])


@dataclass(frozen=True, eq=False)
class TrellisMap(BoundMap[TrellisCell]):
    """The cell bound: `d` dilation, `H` features of `h`, and as many of `c`."""

    inputs_BLD: Tensor
    injection_BLG: Tensor
    """The convolved inputs, `G = 4H`: input, output, candidate and forget gates."""
    weight_GP: Tensor
    """The recurrent weight in effect, for pairs `P = 2H`."""
    hidden_history_BdH: Tensor
    cell_history_BdH: Tensor
    dropout_B1H: Tensor | None
    present_BL1: Tensor | None = None
    """False at padding, whose memory cell stays zero; None where there is none."""
    room: Tensor | None = None
    """Where a cache keeps the states."""

    def evaluate(self, z_BLD: Tensor) -> Tensor:
        h_BLH, c_BLH = z_BLD.chunk(2, dim=-1)
        seen_BLP = pairs(masked(h_BLH, self.dropout_B1H), self.hidden_history_BdH)
        # Both taps and the addition of the injection in one matrix product.
        gates = torch.addmm(self.injection_BLG.flatten(0, 1), seen_BLP.flatten(0, 1), self.weight_GP.mT)
        i, o, g, f = gates.unflatten(0, seen_BLP.shape[:2]).chunk(4, dim=-1)
        forget, addition = torch.sigmoid(f), torch.sigmoid(i) * torch.tanh(g)
        if self.present_BL1 is not None:
            forget, addition = forget * self.present_BL1, addition * self.present_BL1
        if self.cell.scan:
            c_BLH = linear_recurrence(forget, addition, self.cell_history_BdH)
        else:
            c_BLH = torch.addcmul(addition, forget, delayed(c_BLH, self.cell_history_BdH))
        return torch.cat([torch.sigmoid(o) * torch.tanh(c_BLH), c_BLH], dim=-1)

    def remember(self, z_BLD: Tensor, latest: bool = False) -> tuple[Tensor, ...]:
        return z_BLD, self.inputs_BLD

    def over(self, view: CacheView) -> TrellisMap:
        past, states = view.place.past, view.tensors[0]
        hidden_history, cell_history = last(states[:, :past], self.cell.dilation).chunk(2, dim=-1)
        return replace(self, hidden_history_BdH=hidden_history, cell_history_BdH=cell_history, room=states[:, past:])

    def keep(self, z_BLD: Tensor, value_BLD: Tensor) -> None:
        """The states themselves; with `scan`, `c` is that of the evaluation."""
        if self.room is not None:
            h_BLH, c_BLH = self.room.chunk(2, dim=-1)
            h_BLH.copy_(z_BLD.chunk(2, dim=-1)[0])
            c_BLH.copy_((value_BLD if self.cell.scan else z_BLD).chunk(2, dim=-1)[1])
