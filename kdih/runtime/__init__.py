"""What surrounds a run: devices, processes, signals, files, environment, flags and progress."""
