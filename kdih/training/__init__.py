"""Training and evaluation of one task: the step, the loop, the optimizer, checkpoints, metrics."""
