"""Layers that read a state by queries, or average the past: kernels of attention without its growing memory."""
