"""The two ends of a state space are put together from other loops."""

from linscan.engines.reference.ports import ports as ports
from linscan.engines.reference.ports import ports_pullback as ports_pullback
