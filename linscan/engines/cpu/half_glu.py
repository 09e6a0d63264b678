"""A gate opened by what it lets through is put together from other loops."""

from linscan.engines.reference.half_glu import half_glu as half_glu
from linscan.engines.reference.half_glu import half_glu_pullback as half_glu_pullback
