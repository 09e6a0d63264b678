"""The mathematics: contract, checks, equation, step and gradient of each operation, side by side."""
