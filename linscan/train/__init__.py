"""A small trainer: `fit`, optimisers, schedules, checkpoints that resume to the bit, and tasks to try models on."""

from linscan.train.fit import Fitted, fit
from linscan.train.optimisers import SGD, Adam, AdamW, Group
from linscan.train.run import Diverged
from linscan.train.schedules import Constant, Cosine, Plateau
from linscan.train.settings import Settings
from linscan.train.storage import BadFile, load, save

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BadFile",
    "Constant",
    "Cosine",
    "Diverged",
    "Fitted",
    "Group",
    "Plateau",
    "Settings",
    "fit",
    "load",
    "save",
]
