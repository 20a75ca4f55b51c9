"""Distils an image classifier: trains teacher, heads and students, and writes a report.

  python -m kdih.main --config=configs/digits.py --workdir=runs/digits
  python -m kdih.main --config=configs/cifar100.py:runlocal --workdir=runs/smoke
  python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100 \\
      --config.seed=50 --config.student.methods=kd,dih

The same command goes on with a run that was cut off. Exit codes: 0 done, 1 training failed,
2 a setting is wrong, 130 interrupted.
"""
import sys

from kdih import command_line, entry


def main(argv: list[str]) -> int:
  """Runs what the command line `argv` asks for and returns the exit code."""
  return entry.main(argv, f'{__doc__}\n{command_line.usage()}', _run)


def _run(argv: list[str]) -> int:
  config, workdir = command_line.read(argv)
  entry.set_environment(config)
  from kdih import pipeline, run_report  # Takes seconds; the settings are read first.

  results = pipeline.run(config, workdir)
  print(run_report.table(results))
  print(f'\nresults and report: {workdir}/report.md')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
