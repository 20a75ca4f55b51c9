"""Distils an image classifier: trains teacher, heads and students, and writes a report.

  python -m kdih.main --config=configs/digits.py --workdir=runs/digits
  python -m kdih.main --config=configs/cifar100.py:runlocal --workdir=runs/smoke
  python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100 \\
      --config.seed=50 --config.student.methods=kd,dih

The same command goes on with a run that was cut off. Exit codes: 0 done, 1 training failed,
2 a setting is wrong, 75 asked to stop by SIGTERM, and saved: start it again, 130 interrupted.
"""
import sys

from kdih import command_line, distributed, entry

_FLAGS = {
    'coordinator': 'Of several processes that run as one: HOST:PORT of process 0.',
    'num_processes': 'How many there are.',
    'process_id': 'Which of them this is, from 0. Slurm and TPU slices need none of the three.',
}


def main(argv: list[str]) -> int:
  """Runs what the command line `argv` asks for and returns the exit code."""
  return entry.main(argv, f'{__doc__}\n{command_line.usage(_FLAGS)}', _run)


def _run(argv: list[str]) -> int:
  config, workdir = command_line.read(argv, _FLAGS, 'distributed')
  entry.set_environment(config)
  # Takes seconds; the settings are read first.
  from kdih import pipeline, preemption, run_report, validation

  validation.check(config)
  distributed.join(config.distributed)
  preemption.listen()
  results = pipeline.run(config, workdir)
  if distributed.is_first():
    print(run_report.table(results))
    print(f'\nresults and report: {workdir}/report.md')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
