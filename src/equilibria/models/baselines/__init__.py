"""The sequence models that equilibrium models are compared with, all called like a `LanguageModel`."""

from equilibria.models.baselines.base import Layer, SequenceModel, State
from equilibria.models.baselines.darts import DARTS_FIRST_ORDER, DARTS_SECOND_ORDER, DARTSLayer, Node
from equilibria.models.baselines.gated_convolution import GCNN_8, GCNN_14, GatedBlock, gated_blocks
from equilibria.models.baselines.nas import NASLayer
from equilibria.models.baselines.qrnn import QRNNLayer, awd_qrnn
from equilibria.models.baselines.recurrent import GRULayer, LSTMLayer, RecurrentLayer, awd_lstm
from equilibria.models.baselines.relational_memory import RelationalMemoryLayer
from equilibria.models.baselines.tcn import TemporalBlock, receptive_field, temporal_blocks
from equilibria.models.baselines.variational_lstm import VariationalLSTMLayer

__all__ = [
    "DARTS_FIRST_ORDER",
    "DARTS_SECOND_ORDER",
    "GCNN_8",
    "GCNN_14",
    "DARTSLayer",
    "GRULayer",
    "GatedBlock",
    "LSTMLayer",
    "Layer",
    "NASLayer",
    "Node",
    "QRNNLayer",
    "RecurrentLayer",
    "RelationalMemoryLayer",
    "SequenceModel",
    "State",
    "TemporalBlock",
    "VariationalLSTMLayer",
    "awd_lstm",
    "awd_qrnn",
    "gated_blocks",
    "receptive_field",
    "temporal_blocks",
]
