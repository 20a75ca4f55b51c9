"""A loss that is infinite where the learning rate is too high: rewinds to several checkpoints."""

# The largest scale of the learning rate with which a step has a finite loss: seven rewinds.
LIMITS = {3: 1 / 2, 4: 1 / 2, 7: 1 / 16, 11: 1 / 32, 14: 1 / 128}
STEPS, EVERY = 16, 2  # All steps, and those between two checkpoints.
