"""The image classifiers, teachers and students alike, and the taps that they expose."""
