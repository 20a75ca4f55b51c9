"""Measures kdih on a GPU; see `measure.sh`."""
