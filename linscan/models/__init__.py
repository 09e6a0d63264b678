"""Models, one file per paper, in families of folders: plain dictionaries of arrays in, arrays and a pullback out.

`linscan.models.layer` says what every model is; `linscan.models.block` stacks layers into a network.
"""

from linscan.models.attention.deltanet import DeltaNet
from linscan.models.attention.gla import GLA
from linscan.models.attention.retnet import RetNet
from linscan.models.attention.rwkv4 import RWKV4, ChannelMix
from linscan.models.bidirectional import Bidirectional
from linscan.models.block import Block
from linscan.models.convolutional.hyena import Hyena
from linscan.models.convolutional.s4 import S4
from linscan.models.convolutional.s4d import S4D
from linscan.models.gated.hawk import Hawk
from linscan.models.gated.lru import LRU
from linscan.models.gated.mamba import Mamba
from linscan.models.gated.s5 import S5
from linscan.models.layer import Layer, Training
from linscan.models.stack import Stack

__all__ = [
    "GLA",
    "LRU",
    "RWKV4",
    "S4",
    "S4D",
    "S5",
    "Bidirectional",
    "Block",
    "ChannelMix",
    "DeltaNet",
    "Hawk",
    "Hyena",
    "Layer",
    "Mamba",
    "RetNet",
    "Stack",
    "Training",
]
