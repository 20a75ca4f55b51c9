"""The frozen teacher with heads on its taps: the cohort, its soft labels, and their cache."""
