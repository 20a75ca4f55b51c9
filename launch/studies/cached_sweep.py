"""Times a sweep with and without the cache: kd, dih and dkd, three seeds, resnet110 to resnet8.

  python -m launch.studies.cached_sweep --workdir=/tmp/cs \\
      --out=launch/results/benchmark/cached_sweep.json

On a slice of CIFAR-100, in the proportion of the paper's 200 epochs: there an image of 162 views
is shown 200 times; here, without padding, one of two views 2.47 times. Teacher and heads are made
first and learn next to nothing, for it takes as long to ask them. Each sweep is a process, and all
of its time counts: start, compiling, making the cache, checkpoints, validation, test.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from kdih.runtime import run_files

_EPOCHS = 200 * 2 / 162
_SEEDS, _METHODS = (30, 50, 67), ('kd', 'dih', 'dkd')


def main() -> None:
  """Does all of it, and writes the numbers."""
  parser = argparse.ArgumentParser(
      'python -m launch.studies.cached_sweep', description=__doc__.split('\n')[0])
  parser.add_argument('--out', required=True, help='JSON file')
  parser.add_argument('--workdir', required=True, help='folder; must not exist')
  parser.add_argument('--data_dir', default='', help='of TFDS')
  parser.add_argument('--images', type=int, default=6400, help='of the train split')
  given = parser.parse_args()
  workdir = pathlib.Path(given.workdir)
  workdir.mkdir(parents=True)
  common = _common(given.data_dir, given.images)
  teacher = workdir / 'made' / 'resnet110'
  _run('main', *common, f'--workdir={teacher}', '--config.phases=teacher,heads')
  seconds: dict[str, float] = {}
  training_seconds: dict[str, float] = {}
  test_loss: dict[str, dict[str, float]] = {}
  for cache in ('none', 'all_views'):
    folder = shutil.copytree(workdir / 'made', workdir / cache)
    begun = time.perf_counter()
    _run('sweep', *common, f'--config.compute.cache={cache}', f'--workdir={folder}',
         f'--methods={",".join(_METHODS)}', f'--seeds={",".join(map(str, _SEEDS))}')
    seconds[cache] = time.perf_counter() - begun
    results = {str(path.parent.relative_to(folder)): run_files.read(path, run_files.StudentResult)
               for path in sorted(folder.glob('*/*/seed*/student/*/result.json'))}
    training_seconds[cache] = sum(result['seconds'] for result in results.values())
    test_loss[cache] = {run: result['test_last']['loss'] for run, result in results.items()}
  manifest = run_files.read(teacher / 'manifest.json', run_files.Manifest)
  content = {
      # What both sweeps took, in all and in training alone, and how far their students are apart.
      'seconds': seconds,
      'ratio': seconds['none'] / seconds['all_views'],
      'training_seconds': training_seconds,
      'test_loss_apart': max(abs(test_loss['none'][run] - test_loss['all_views'][run])
                             for run in test_loss['none']),
      'test_loss': test_loss,
      # What they were, and where.
      'images': given.images, 'epochs': _EPOCHS, 'seeds': _SEEDS, 'methods': _METHODS, 'runs': 1,
      'cpus': os.cpu_count(),
      **{field: manifest[field] for field in ('devices', 'versions', 'git_commit')}}
  pathlib.Path(given.out).write_text(json.dumps(content, indent=2) + '\n')
  print(f'{seconds["none"]:.0f} s without, {seconds["all_views"]:.0f} s with the cache: '
        f'{content["ratio"]:.2f} times as fast; losses on the test split differ by '
        f'{content["test_loss_apart"]:.1e} at most')
  shutil.rmtree(workdir)


def _common(data_dir: str, images: int) -> list[str]:
  slow = {f'{role}.train.learning_rate': 0.01 for role in ('teacher', 'heads', 'student')}
  fields = {
      **slow, 'data.data_dir': data_dir, 'data.train_split': f'train[:{images}]',
      'data.test_split': 'test[:100]', 'data.padding': 0, 'teacher.train.unit': 'steps',
      'teacher.train.length': 20.0, 'teacher.train.milestones': '', 'heads.train.unit': 'steps',
      'teacher.train.evaluate_every': 20.0, 'heads.train.evaluate_every': 20.0,
      'heads.train.length': 20.0, 'heads.train.milestones': '',
      'student.train.milestones': '', 'student.train.length': _EPOCHS}
  return ['--config=configs/cifar100.py',
          *(f'--config.{field}={value}' for field, value in fields.items())]


def _run(program: str, *arguments: str) -> None:
  subprocess.run([sys.executable, '-m', f'kdih.{program}', *arguments], check=True)


if __name__ == '__main__':
  main()
