"""The same training in PyTorch; its numbers are compared with kdih's before it is timed."""
