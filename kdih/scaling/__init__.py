"""How the cost of distillation grows: measured curves, and what large runs would need.

`python -m kdih.scaling --help` says how it is run; `launch/scaling.md` holds what it found.
"""
