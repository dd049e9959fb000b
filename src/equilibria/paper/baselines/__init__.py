"""The sequence models that equilibrium models are compared with, all called like a `LanguageModel`."""

from equilibria.paper.baselines.base import Layer, SequenceModel, State
from equilibria.paper.baselines.darts import DARTS_FIRST_ORDER, DARTS_SECOND_ORDER, DARTSLayer, Node
from equilibria.paper.baselines.gated_convolution import GCNN_8, GCNN_14, GatedBlock, gated_blocks
from equilibria.paper.baselines.nas import NASLayer
from equilibria.paper.baselines.qrnn import QRNNLayer, awd_qrnn
from equilibria.paper.baselines.recipes import (
    DARTS,
    GRU,
    LSTM,
    NAS,
    QRNN,
    TCN,
    Baseline,
    GatedConvolution,
    LayeredBaseline,
    RelationalMemory,
    Stack,
    VariationalLSTM,
)
from equilibria.paper.baselines.recurrent import GRULayer, LSTMLayer, RecurrentLayer, awd_lstm
from equilibria.paper.baselines.relational_memory import RelationalMemoryLayer
from equilibria.paper.baselines.tcn import TemporalBlock, receptive_field, temporal_blocks
from equilibria.paper.baselines.variational_lstm import VariationalLSTMLayer

__all__ = [
    "DARTS",
    "DARTS_FIRST_ORDER",
    "DARTS_SECOND_ORDER",
    "GCNN_8",
    "GCNN_14",
    "GRU",
    "LSTM",
    "NAS",
    "QRNN",
    "TCN",
    "Baseline",
    "DARTSLayer",
    "GRULayer",
    "GatedBlock",
    "GatedConvolution",
    "LSTMLayer",
    "Layer",
    "LayeredBaseline",
    "NASLayer",
    "Node",
    "QRNNLayer",
    "RecurrentLayer",
    "RelationalMemory",
    "RelationalMemoryLayer",
    "SequenceModel",
    "Stack",
    "State",
    "TemporalBlock",
    "VariationalLSTM",
    "VariationalLSTMLayer",
    "awd_lstm",
    "awd_qrnn",
    "gated_blocks",
    "receptive_field",
    "temporal_blocks",
]
