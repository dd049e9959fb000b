"""The sequence models that equilibrium models are compared with, as recipes hold them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from equilibria.models import ModelRecipe
from equilibria.models.recipe import blamed_on
from equilibria.paper.baselines.base import Layer, SequenceModel
from equilibria.paper.baselines.convolutional import GatedBlock, TemporalBlock
from equilibria.paper.baselines.qrnn import QRNNLayer
from equilibria.paper.baselines.recurrent import GRULayer, LSTMLayer, VariationalLSTMLayer
from equilibria.paper.baselines.relational_memory import Gates, RelationalMemoryLayer
from equilibria.paper.baselines.searched import DARTS_FIRST_ORDER, DARTS_SECOND_ORDER, DARTSLayer, NASLayer, Node
from equilibria.ranges import layers, one_of, whole

Search = Literal["first_order", "second_order"]

_GRAPHS: dict[Search, tuple[Node, ...]] = {"first_order": DARTS_FIRST_ORDER, "second_order": DARTS_SECOND_ORDER}


@dataclass(frozen=True, kw_only=True)
class Baseline(ModelRecipe):
    """A model that equilibrium models are compared with.

    Args:
        d_model: features of an embedded token.

    Raises:
        ValueError: an option is out of its range.
    """

    d_model: int

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, d_model=self.d_model)


@dataclass(frozen=True, kw_only=True)
class LayeredBaseline(Baseline):
    """Layers with a state, in the order they are applied.

    Args:
        hidden_dropout: probability of dropping a feature between layers, for all tokens of a row alike.
    """

    hidden_dropout: float = 0.0

    @abstractmethod
    def build_layers(self) -> Sequence[Layer]:
        """The layers; the last has `d_model` units unless the embedding is untied."""

    def build(self, vocabulary_size: int) -> SequenceModel:
        with blamed_on("model"):
            layers = self.build_layers()
        embedding = self.build_embedding(vocabulary_size, self.d_model, layers[-1].d_out)
        with blamed_on("model"):
            return SequenceModel(embedding, layers, self.regularisation, self.memory_length, self.hidden_dropout)


@dataclass(frozen=True, kw_only=True)
class StackedBaseline(LayeredBaseline):
    """Layers of one kind and width.

    Args:
        hidden: units of a layer; the last has d_model unless the embedding is untied.
        layers: how many.
    """

    hidden: int
    layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, hidden=self.hidden)
        layers(layers=self.layers)

    @property
    def widths(self) -> list[tuple[int, int]]:
        """Features in and out of each layer."""
        last = self.hidden if self.untied else self.d_model
        return list(pairwise([self.d_model, *[self.hidden] * (self.layers - 1), last]))


@dataclass(frozen=True, kw_only=True)
class LSTM(StackedBaseline):
    """An LSTM (Hochreiter and Schmidhuber 1997).

    Args:
        weight_dropout: probability of dropping an entry of the recurrent matrix.
    """

    weight_dropout: float = 0.0

    def build_layers(self) -> list[LSTMLayer]:
        return [LSTMLayer(*width, self.weight_dropout) for width in self.widths]


@dataclass(frozen=True, kw_only=True)
class VariationalLSTM(StackedBaseline):
    """The variational LSTM (Gal and Ghahramani 2016).

    Args:
        cell_dropout: probability of dropping a feature of a layer's input, in each gate on its own.
        recurrent_dropout: the same of the last hidden state.
    """

    cell_dropout: float = 0.0
    recurrent_dropout: float = 0.0

    def build_layers(self) -> list[VariationalLSTMLayer]:
        return [VariationalLSTMLayer(*width, self.cell_dropout, self.recurrent_dropout) for width in self.widths]


@dataclass(frozen=True, kw_only=True)
class GRU(StackedBaseline):
    """A network of gated recurrent units (Cho et al. 2014).

    Args:
        weight_dropout: probability of dropping an entry of the recurrent matrix.
    """

    weight_dropout: float = 0.0

    def build_layers(self) -> list[GRULayer]:
        return [GRULayer(*width, self.weight_dropout) for width in self.widths]


@dataclass(frozen=True, kw_only=True)
class QRNN(StackedBaseline):
    """The quasi-recurrent network (Bradbury et al. 2016).

    Args:
        window: tokens that the first layer's convolution sees; the others see one.
        weight_dropout: probability of dropping an entry of the convolution.
    """

    window: int = 2
    weight_dropout: float = 0.0

    def build_layers(self) -> list[QRNNLayer]:
        return [
            QRNNLayer(*width, 1 if number else self.window, self.weight_dropout)
            for number, width in enumerate(self.widths)
        ]


@dataclass(frozen=True, kw_only=True)
class TCN(StackedBaseline):
    """The temporal convolutional network (Bai et al. 2018), whose dilation doubles from layer to layer.

    Args:
        kernel_size: taps of a convolution.
        dropout: probability of dropping a channel.
    """

    kernel_size: int
    dropout: float = 0.0

    def build_layers(self) -> list[TemporalBlock]:
        return [
            TemporalBlock(*width, self.kernel_size, 2**level, self.dropout) for level, width in enumerate(self.widths)
        ]


@dataclass(frozen=True, kw_only=True)
class GatedConvolution(LayeredBaseline):
    """The gated convolutional network (Dauphin et al. 2016).

    Args:
        kernel_sizes: taps of each layer's convolution.
        channels: of each layer; the last has d_model unless the embedding is untied.
        dropout: probability of dropping a channel.
    """

    kernel_sizes: tuple[int, ...]
    channels: tuple[int, ...]
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes, channels = self.kernel_sizes, self.channels
        if len(sizes) != len(channels) or not channels:
            raise ValueError(
                f"kernel_sizes has {len(sizes)} entries and channels {len(channels)}: expected as many, and at least 1"
            )
        if min(*sizes, *channels) < 1:
            raise ValueError(f"kernel_sizes and channels must be at least 1, found {sizes} and {channels}")
        if not self.untied and channels[-1] != self.d_model:
            raise ValueError(
                f"channels ends in {channels[-1]}: expected d_model, {self.d_model}, which the softmax reads unless "
                f"the embedding is untied"
            )

    def build_layers(self) -> list[GatedBlock]:
        widths = pairwise([self.d_model, *self.channels])
        pairs = zip(widths, self.kernel_sizes, strict=True)
        return [GatedBlock(before, [(size, after)], self.dropout) for (before, after), size in pairs]


@dataclass(frozen=True, kw_only=True)
class RelationalMemory(StackedBaseline):
    """The relational memory core (Santoro et al. 2018).

    Args:
        slots: rows of the memory.
        heads: attention heads.
        head_size: features of a head.
        gates: a gate per feature (unit) or per slot (slot).
        mlp_layers: layers of the network after the attention.
    """

    slots: int = 4
    heads: int = 4
    head_size: int = 64
    gates: Gates = "unit"
    mlp_layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        layers(mlp_layers=self.mlp_layers)

    def build_layers(self) -> list[RelationalMemoryLayer]:
        options = self.slots, self.heads, self.head_size, self.gates, self.mlp_layers
        return [RelationalMemoryLayer(*width, *options) for width in self.widths]


@dataclass(frozen=True, kw_only=True)
class DARTS(StackedBaseline):
    """The recurrent cell found by differentiable architecture search (Liu et al. 2018).

    Args:
        search: which of the published cells.
        cell_dropout: probability of dropping a feature of a layer's input.
        recurrent_dropout: probability of dropping a feature of what a node reads.
    """

    search: Search = "second_order"
    cell_dropout: float = 0.0
    recurrent_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(Search, search=self.search)

    def build_layers(self) -> list[DARTSLayer]:
        options = _GRAPHS[self.search], self.cell_dropout, self.recurrent_dropout
        return [DARTSLayer(*width, *options) for width in self.widths]


@dataclass(frozen=True, kw_only=True)
class NAS(StackedBaseline):
    """The recurrent cell found by architecture search (Zoph and Le 2016)."""

    def build_layers(self) -> list[NASLayer]:
        return [NASLayer(*width) for width in self.widths]
