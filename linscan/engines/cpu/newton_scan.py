"""Newton's method on the CPU: the array code of the reference, whose linear recurrences have loops of their own."""

from linscan.engines.reference.newton_scan import newton_scan, newton_scan_pullback

__all__ = ["newton_scan", "newton_scan_pullback"]
