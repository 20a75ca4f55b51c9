"""How the cost of distillation grows: measured curves, and what large runs would need.

`python -m launch.studies.scaling --help` explains the command; `launch/studies/scaling.md` contains
the results.
"""
