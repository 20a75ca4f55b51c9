"""Measures the time of a DIH training step, its hardware limits, and PyTorch's; see `__main__`."""
