"""Models that train as convolutions."""
