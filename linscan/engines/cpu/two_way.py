"""Scans in both directions are two scans."""

from linscan.engines.reference.two_way import two_way as two_way
from linscan.engines.reference.two_way import two_way_pullback as two_way_pullback
