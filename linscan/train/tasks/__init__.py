"""Tasks to train models on: sequences made from a seed, and real data from packages."""

from linscan.train.tasks.digits import Digits
from linscan.train.tasks.listops import ListOps
from linscan.train.tasks.recalling import Copy, Memory, Recall, SelectiveCopy
from linscan.train.tasks.speech import Speech
from linscan.train.tasks.text import Text
from linscan.train.tasks.tracking import Modular, Parity, Permutations

__all__ = [
    "Copy",
    "Digits",
    "ListOps",
    "Memory",
    "Modular",
    "Parity",
    "Permutations",
    "Recall",
    "SelectiveCopy",
    "Speech",
    "Text",
]
