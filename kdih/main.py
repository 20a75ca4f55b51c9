"""Distils an image classifier: trains teacher, heads and students, and writes a report.

  python -m kdih.main --config=configs/digits.py --workdir=runs/digits
  python -m kdih.main --config=configs/cifar100.py:runlocal --workdir=runs/smoke
  python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100 \\
      --config.seed=50 --config.student.methods=kd,dih
  python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100 --dry_run

With --dry_run the command prints the time and the memory that the run will take, and trains
nothing. Run the same command again to resume a run that was interrupted. Exit codes: 0 done, 1
training failed, 2 a setting is wrong, 75 stopped by SIGTERM, 130 interrupted.
"""
import functools
import sys
from typing import TYPE_CHECKING, Any

from kdih.config import flags
from kdih.runtime import environment, files, logs, processes, program

if TYPE_CHECKING:
  import ml_collections
  from etils import epath

_SHORT = {  # Short flags, with the fields that they set.
    **{name: name for name in ('accept', 'dry_run', 'dry_run_seconds')},
    **{name: f'distributed.{name}' for name in ('coordinator', 'num_processes', 'process_id')},
}


def run(config: 'ml_collections.ConfigDict', workdir: 'epath.PathLike') -> dict[str, Any]:
  """Runs the phases that `config` names, writes the report, and returns the results.

  Args:
    config: from a config file.
    workdir: the folder of the run; a run that was interrupted resumes.

  Returns:
    The results, as in `results.json`.

  Raises:
    ConfigError: a setting is wrong; nothing has been written to the workdir, but for locks if
      another process uses it, or has begun another run in it since the checks.
    TrainingError: training cannot continue.
    PreemptedError: the process received SIGTERM; the same command resumes the run.
  """
  from kdih.phases import pipeline  # These import jax, which takes seconds.
  from kdih.report import run_report

  logs.configure()
  environment.provide_home()
  experiment = pipeline.prepare_run(config, files.given('workdir', workdir))
  with experiment.workdir.locked():
    pipeline.run(experiment)
    return run_report.write(experiment.workdir, experiment.networks, config)


def _run(argv: list[str]) -> int:
  config, workdir = flags.read(argv, _SHORT)
  environment.set_environment(config)
  # These imports take seconds; a wrong setting has been reported before.
  from kdih.config import checks
  from kdih.phases import pipeline
  from kdih.report import run_report
  from kdih.runtime import preemption

  checks.check(config)
  processes.join(config.distributed)
  with preemption.listening():
    if config.dry_run:
      text = pipeline.estimate(config, workdir)
      if processes.is_first():
        print(text)
      return 0
    results = run(config, workdir)
    if processes.is_first():
      print(run_report.table(results))
      print(f'\nresults and report: {workdir}/report.md')
    return 0


# Runs a command line, program name first, and returns the exit code.
main = functools.partial(program.main, help_text=f'{__doc__}\n{flags.usage(_SHORT)}', body=_run)

if __name__ == '__main__':
  program.end(main(sys.argv))
