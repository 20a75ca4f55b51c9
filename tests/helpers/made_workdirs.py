"""Workdirs of runs and sweeps, made up: the files that a report reads."""
import json
import pathlib

from kdih.config import fields as fields_lib
from kdih.report.collect import collect
from tests.helpers.made_results import heads, result


def write(path: pathlib.Path, content) -> None:
  """Writes text, or JSON of anything else, and the folders above it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content if isinstance(content, str) else json.dumps(content))


def manifest(workdir, seed=3, **fields) -> None:
  """That of a run of resnet110 to resnet8 with other values of some fields of the config."""
  config = fields_lib.base()
  config.seed = seed
  config.data.name = 'cifar100'
  config.update_from_flattened_dict(fields)
  write(workdir / 'manifest.json', {'config': json.loads(config.to_json())})


def student(workdir, method, top1=0.6, seed=3, **fields) -> None:
  """One that is finished."""
  write(workdir / 'student' / method / 'result.json',
        result(top1, seed=seed, method=dict(kind=method), **fields))


def single(workdir, *methods, seed=3, top1=0.6, fingerprint='t', **fields) -> pathlib.Path:
  """A workdir of kdih.main."""
  manifest(workdir, seed, **fields)
  write(workdir / 'teacher/result.json', result(0.75, fingerprint=fingerprint))
  write(workdir / 'heads/result.json', heads('stage1'))
  for method in methods:
    student(workdir, method, top1, seed)
  return workdir


def swept(workdir, *methods, seeds=(30, 50), top1=0.6, **fields) -> pathlib.Path:
  """A workdir of kdih.sweep with one teacher and one student."""
  write(workdir / 'sweep.json',
        [{'pairs': [['resnet110', 'resnet8', methods]], 'left_out': {}, 'seeds': seeds,
          'config': {}}])
  single(workdir / 'resnet110', **fields)
  for seed in seeds:
    folder = workdir / 'resnet110/resnet8' / f'seed{seed}'
    manifest(folder, seed, **fields)
    for method in methods:
      student(folder, method, top1, seed)
  return workdir


def found(*paths):
  """(method, seed) of every run that is collected from there, and the problems."""
  runs, problems = collect(paths)
  return [(run.method, run.seed) for run in runs], problems
