"""Distils an image classifier: trains teacher, heads and students, and writes a report.

  python -m kdih.main --config=configs/digits.py --workdir=runs/digits
  python -m kdih.main --config=configs/cifar100.py:runlocal --workdir=runs/smoke
  python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100 \\
      --config.seed=50 --config.student.methods=kd,dih
  python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100 --dry_run

The last one says what it will take, and trains nothing. The same command goes on with a run that
was cut off. Exit codes: 0 done, 1 training failed, 2 a setting is wrong, 75 asked to stop by
SIGTERM, and saved: start it again, 130 interrupted.
"""
import functools
import sys
from typing import TYPE_CHECKING, Any

from kdih.config import flags
from kdih.runtime import environment, logs, processes, program

if TYPE_CHECKING:
  import ml_collections
  from etils import epath

_SHORT = {  # Flags, and the fields that they set.
    **{name: name for name in ('accept', 'dry_run', 'dry_run_seconds')},
    **{name: f'distributed.{name}' for name in ('coordinator', 'num_processes', 'process_id')},
}


def run(config: 'ml_collections.ConfigDict', workdir: 'epath.PathLike') -> dict[str, Any]:
  """Runs the phases that `config` names, writes the report, and returns what was found.

  Args:
    config: from a config file.
    workdir: the folder of the run; one that was cut off goes on.

  Returns:
    The results, as in `results.json`.

  Raises:
    ConfigError: a setting is wrong; nothing has been written to the workdir.
    TrainingError: training cannot go on.
    PreemptedError: the process was asked to stop, and has saved.
  """
  from kdih.phases import pipeline  # These import jax, which takes seconds.
  from kdih.report import run_report

  logs.configure()
  experiment = pipeline.prepare_run(config, workdir)
  with experiment.workdir.locked():
    pipeline.run(experiment)
    return run_report.write(experiment.workdir, experiment.networks, config)


def _run(argv: list[str]) -> int:
  config, workdir = flags.read(argv, _SHORT)
  environment.set_environment(config)
  # These take seconds; the settings are read first.
  from kdih.config import checks
  from kdih.phases import pipeline
  from kdih.report import run_report
  from kdih.runtime import preemption

  checks.check(config)
  processes.join(config.distributed)
  preemption.listen()
  if config.dry_run:
    said = pipeline.estimate(config, workdir)
    if processes.is_first():
      print(said)
    return 0
  results = run(config, workdir)
  if processes.is_first():
    print(run_report.table(results))
    print(f'\nresults and report: {workdir}/report.md')
  return 0


# Runs what a command line asks for, and returns the exit code.
main = functools.partial(program.main, help_text=f'{__doc__}\n{flags.usage(_SHORT)}', body=_run)

if __name__ == '__main__':
  sys.exit(main(sys.argv))
