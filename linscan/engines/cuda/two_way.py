"""Scans in both directions on the GPU are one launch of scan_lanes.cu, where it is the kernel for their shape."""

from linscan.engines.cuda.scan import two_way as two_way
from linscan.engines.cuda.scan import two_way_pullback as two_way_pullback
