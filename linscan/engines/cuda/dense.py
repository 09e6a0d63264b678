"""Products of matrices on the GPU are cuBLAS's, which the array code asks."""

from linscan.engines.reference.dense import dense as dense
from linscan.engines.reference.dense import dense_pullback as dense_pullback
