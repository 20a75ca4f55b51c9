"""Studies of speed and cost; not installed, run as `python -m launch.studies.<name>`."""
