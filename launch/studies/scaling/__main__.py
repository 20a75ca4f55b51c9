"""Measures and works out how the cost of distillation grows.

  python -m launch.studies.scaling --out=launch/results/scaling
  python -m launch.studies.scaling --out=launch/results/scaling --only=batch,depth
  pip install '.[tpu]' && \
      python -m launch.studies.scaling --out=launch/results/scaling --only=compiled

Parts: batch, depth, heads, classes, classes_gap, devices (measured here, on the CPU), head_sizes,
caches (worked out), compiled (by XLA's compiler for the TPU, without one; it takes half an hour,
and goes on where it was cut off). Each replaces its numbers in `scaling.json` and leaves the
others. Tables are printed, pictures drawn beside the file, and `studies/scaling.md` two
folders above is brought up to date if it is there. Exit codes: 0 done, 2 a setting is wrong.
"""
import os
import sys

from kdih.runtime import environment, program


def main(argv: list[str]) -> int:
  """Runs what the command line `argv` asks for and returns the exit code."""
  return program.main(argv, f'{__doc__}', _run)


def _run(argv: list[str]) -> int:
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  environment.set_environment({'deterministic': True})  # The default of a run.
  from launch.studies.scaling import command  # Imports jax, which takes seconds.

  environment.keep_freed_memory()
  return command.run(argv)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
