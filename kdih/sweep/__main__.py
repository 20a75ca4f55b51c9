"""Compares methods: one teacher and one set of heads, every method, student and seed.

  python -m kdih.sweep --config=configs/cifar100.py --methods=ce,kd,kd_matched,dih \\
      --students=resnet8,resnet20 --seeds=30,50,67 --workdir=runs/sweep
  python -m kdih.sweep --config=configs/paper.py:table=cifar100 --workdir=runs/paper --dry_run

Run the same command again to resume a sweep that was interrupted, and to repeat the runs that
failed. Several processes with the same workdir, on one machine or on several that share the folder,
share the work. Exit codes: 0 done, 1 some runs failed, 2 a setting is wrong, 75 stopped by
SIGTERM, 130 interrupted.
"""
import sys

from kdih import errors
from kdih.config import flags
from kdih.runtime import environment, program

# Short flags, with the fields that they set.
_SHORT = {
    **{name: name for name in ('accept', 'dry_run', 'dry_run_seconds')},
    **{name: f'sweep.{name}' for name in (
        'methods', 'students', 'pairs', 'seeds', 'alphas', 'learning_rates', 'together',
        'together_by')}}


def main(argv: list[str]) -> int:
  """Runs the command line `argv`, program name first, and returns the exit code."""
  return program.main(argv, f'{__doc__}\n{flags.usage(_SHORT)}', _run)


def _run(argv: list[str]) -> int:
  config, workdir = flags.read(argv, _SHORT)
  environment.set_environment(config)
  from kdih.runtime import preemption  # These imports take seconds.
  from kdih.sweep.run import estimate, run

  with preemption.listening():
    if config.dry_run:
      print(estimate(config, workdir))
      return 0
    failures = run(config, workdir)
  for name, reason in failures.items():
    print(errors.printable(f'failed: {name}: {reason}'), file=sys.stderr)
  if failures:
    print(f'kdih: {len(failures)} failed; the same command tries them again', file=sys.stderr)
  print(f'\ntables and pictures: python -m kdih.report {workdir}')
  return 1 if failures else 0


if __name__ == '__main__':
  program.end(main(sys.argv))
