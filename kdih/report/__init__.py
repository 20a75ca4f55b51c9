"""Reports of one run, and comparisons of many runs (`python -m kdih.report`)."""
