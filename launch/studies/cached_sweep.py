"""Times a sweep with and without the teacher cache: kd, dih and dkd, resnet110 to resnet8.

  python -m launch.studies.cached_sweep --workdir=/tmp/cs \\
      --out=launch/results/benchmark/cached_sweep.json

The sweep has three seeds and trains on a slice of CIFAR-100. Its ratio of views to epochs is the
paper's: with padding an image has 162 views and the paper trains for 200 epochs; without padding an
image has 2 views and this sweep trains for 2.47 epochs. The teacher and its heads are trained once
for 20 steps, because the time of a forward pass does not depend on their accuracy. Each sweep is a
process, and its whole time is measured: start, compilation, building the cache, training,
checkpoints, validation and test.
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
  """Runs both sweeps and writes their times to `--out`."""
  parser = argparse.ArgumentParser(
      'python -m launch.studies.cached_sweep', description=__doc__.split('\n')[0])
  parser.add_argument('--out', required=True, help='JSON file')
  parser.add_argument('--workdir', required=True, help='folder; must not exist')
  parser.add_argument('--data_dir', default='', help='of TFDS')
  parser.add_argument('--images', type=int, default=6400, help='of the train split')
  flags = parser.parse_args()
  workdir = pathlib.Path(flags.workdir)
  workdir.mkdir(parents=True)
  common = _common(flags.data_dir, flags.images)
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
      # The times of both sweeps, in total and for training alone, and how their students differ.
      'seconds': seconds,
      'ratio': seconds['none'] / seconds['all_views'],
      'training_seconds': training_seconds,
      'test_loss_apart': max(abs(test_loss['none'][run] - test_loss['all_views'][run])
                             for run in test_loss['none']),
      'test_loss': test_loss,
      # The settings and the machine.
      'images': flags.images, 'epochs': _EPOCHS, 'seeds': _SEEDS, 'methods': _METHODS, 'runs': 1,
      'cpus': os.cpu_count(),
      **{field: manifest[field] for field in ('devices', 'versions', 'git_commit')}}
  pathlib.Path(flags.out).write_text(json.dumps(content, indent=2) + '\n')
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
