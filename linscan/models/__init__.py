"""Models, one file per paper, in families of folders: plain dictionaries of arrays in, arrays and a pullback out.

`linscan.models.layer` says what every model is; `linscan.models.block` stacks layers into a network.
"""

from linscan.models.attention.deltanet import DeltaNet
from linscan.models.attention.gla import GLA
from linscan.models.attention.local import LocalAttention
from linscan.models.attention.mega import MEGA, mega
from linscan.models.attention.mlstm import MLSTM
from linscan.models.attention.retnet import RetNet
from linscan.models.attention.rwkv4 import RWKV4, ChannelMix
from linscan.models.bidirectional import Bidirectional
from linscan.models.block import Block
from linscan.models.convolutional.hyena import Hyena
from linscan.models.convolutional.s4 import S4
from linscan.models.convolutional.s4d import S4D
from linscan.models.feed_forward import FeedForward
from linscan.models.gated.gilr_lstm import GILRLSTM
from linscan.models.gated.griffin import griffin
from linscan.models.gated.hawk import Hawk
from linscan.models.gated.lru import LRU
from linscan.models.gated.mamba import Mamba
from linscan.models.gated.s5 import S5
from linscan.models.layer import Layer, Training
from linscan.models.nonlinear.slstm import SLSTM
from linscan.models.nonlinear.xlstm import xlstm
from linscan.models.stack import Stack

__all__ = [
    "GILRLSTM",
    "GLA",
    "LRU",
    "MEGA",
    "MLSTM",
    "RWKV4",
    "S4",
    "S4D",
    "S5",
    "SLSTM",
    "Bidirectional",
    "Block",
    "ChannelMix",
    "DeltaNet",
    "FeedForward",
    "Hawk",
    "Hyena",
    "Layer",
    "LocalAttention",
    "Mamba",
    "RetNet",
    "Stack",
    "Training",
    "griffin",
    "mega",
    "xlstm",
]
