"""Diagonal discretisation on the CPU: the array code of the reference, for a few hundred numbers."""

from linscan.engines.reference.discretize_diag import discretize_diag, discretize_diag_pullback

__all__ = ["discretize_diag", "discretize_diag_pullback"]
