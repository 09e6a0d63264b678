"""Models whose states feed back through nonlinear functions."""
