"""Compares methods: one teacher and one set of heads, every method, student and seed.

  python -m kdih.sweep --config=configs/cifar100.py --methods=ce,kd,kd_matched,dih \\
      --students=resnet8,resnet20 --seeds=30,50,67 --workdir=runs/sweep
  python -m kdih.sweep --config=configs/paper.py:table=cifar100 --workdir=runs/paper --dry_run

The same command goes on with a sweep that was cut off, and trains again what failed. Started
several times on one workdir, on one machine or on several that share the folder, the processes
share the work. Exit codes: 0 done, 1 some runs failed, 2 a setting is wrong, 75 asked to stop by
SIGTERM, and saved: start it again, 130 interrupted.
"""
import sys

from kdih import errors
from kdih.runtime import environment, flags, program

_FLAGS = {
    'methods': 'Names of entries in config.methods, by commas.',
    'students': 'Names of students, by commas, for the teacher of the config.',
    'pairs': "In place of students: 'teacher:student', by commas.",
    'seeds': 'Seeds of the students, by commas.',
    'alphas': 'Weights of the teachers to try, by commas, with every method that has an alpha.',
    'learning_rates': 'Learning rates to try, by commas, with every method.',
    'together': 'Train all seeds and variants of a student by a method as one program; see '
                'data.order_seed.',
    'together_by': "How: 'vmap', 'unrolled', or 'auto'.",
    'dry_run': 'Say what it would cost, and train nothing.',
}


def main(argv: list[str]) -> int:
  """Runs what the command line `argv` asks for and returns the exit code."""
  return program.main(argv, f'{__doc__}\n{flags.usage(_FLAGS)}', _run)


def _run(argv: list[str]) -> int:
  config, workdir = flags.read([_checked(argument) for argument in argv], _FLAGS, 'sweep')
  environment.set_environment(config)
  from kdih.runtime import preemption  # These take seconds; the settings are read first.
  from kdih.sweep.run import estimate, run

  preemption.listen()
  if config.sweep.dry_run:
    print(estimate(config, workdir))
    return 0
  failures = run(config, workdir)
  for name, reason in failures.items():
    print(f'failed: {name}: {reason}', file=sys.stderr)
  if failures:
    print(f'kdih: {len(failures)} failed; the same command tries them again', file=sys.stderr)
  print(f'\ntables and pictures: python -m kdih.report {workdir}')
  return 1 if failures else 0


def _checked(argument: str) -> str:
  """The argument as `flags` reads it: what holds a colon is quoted."""
  name, equals, value = argument.lstrip('-').partition('=')
  switch = name in ('together', 'dry_run') and not equals
  if not argument.startswith('-') or name not in _FLAGS or switch:
    return argument
  if not value:  # As where a variable of the shell is not set.
    raise errors.ConfigError(f'--{name}: has no value; write --{name}=VALUE, or leave it out')
  quoted = value if ':' not in value or value[0] in '\'"([' else repr(value)
  return f'--{name}={quoted}'


if __name__ == '__main__':
  sys.exit(main(sys.argv))
