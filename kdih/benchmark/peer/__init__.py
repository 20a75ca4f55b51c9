"""The same training in PyTorch, checked equal before it is timed."""
