"""Distils an image classifier: trains teacher, heads and students, and writes a report.

  python -m kdih.main --config=configs/digits.py --workdir=runs/digits
  python -m kdih.main --config=configs/cifar100.py:runlocal --workdir=runs/smoke
  python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100 \\
      --config.seed=50 --config.student.methods=kd,dih

The same command goes on with a run that was cut off. Exit codes: 0 done, 1 training failed,
2 a setting is wrong, 130 interrupted.
"""
import os
import sys

import ml_collections
from absl import logging

from kdih import command_line, errors

_DETERMINISTIC = '--xla_gpu_deterministic_ops=true'


def main(argv: list[str]) -> int:
  """Runs what the command line `argv` asks for and returns the exit code."""
  if {'--help', '-h', '-help', '--helpfull'} & set(argv):
    print(f'{__doc__}\n{command_line.usage()}')
    return 0
  try:
    return _run(argv)
  except errors.ConfigError as error:
    return _fail(2, error)
  except errors.TrainingError as error:
    return _fail(1, error)
  except KeyboardInterrupt:
    return _fail(130, 'interrupted; the same command goes on from the last checkpoint')


def _run(argv: list[str]) -> int:
  config, workdir = command_line.read(argv)
  _set_environment(config)
  from kdih import pipeline, run_report  # Takes seconds; the settings are read first.

  results = pipeline.run(config, workdir)
  print(run_report.table(results))
  print(f'\nresults and report: {workdir}/report.md')
  return 0


def _set_environment(config: ml_collections.ConfigDict) -> None:
  logging.set_verbosity(logging.ERROR)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # Else TensorFlow prints a warning.
  xla_flags = os.environ.get('XLA_FLAGS', '').split()
  if config.deterministic and _DETERMINISTIC not in xla_flags:
    os.environ['XLA_FLAGS'] = ' '.join([*xla_flags, _DETERMINISTIC])


def _fail(code: int, reason: object) -> int:
  print(f'kdih: {" ".join(str(reason).split())}', file=sys.stderr)
  return code


if __name__ == '__main__':
  sys.exit(main(sys.argv))
