"""How the cost of distillation grows: measured curves, and what large runs would need.

`python -m launch.studies.scaling --help` says how it is run; `launch/studies/scaling.md` holds what
it found.
"""
