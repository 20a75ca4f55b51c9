"""Host memory: a long run holds it flat, and streamed data need not fit into it."""
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.helpers.runs import ROOT

MB = 2**20
# Prints the memory of the process at some steps of a run of the teacher.
RUN = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import jax, psutil
from kdih import main
from kdih.data import sampling
from tests.helpers import runs
jax.config.update('jax_num_cpu_devices', 1)
workdir, folder, marks, *options = sys.argv[2:]
train_batches, process = sampling.train_batches, psutil.Process()

def measured(subset, batch_size, seed, start, stop):
  batches = train_batches(subset, batch_size, seed, start, stop)
  for step, batch in enumerate(batches, start):
    if str(step) in marks.split(','):
      print('rss', step, process.memory_info().rss)
    yield batch

sampling.train_batches = measured
config = runs.read_config(
    pathlib.Path(workdir), folder, '--config.phases=teacher', *options)
main.run(config, workdir)
"""


def memory(workdir, data_dir, marks, *options) -> dict[str, int]:
  """Bytes of resident memory at each of the steps `marks`."""
  command = [sys.executable, '-c', RUN, str(ROOT), str(workdir), str(data_dir),
             ','.join(map(str, marks)), *options]
  done = subprocess.run(command, capture_output=True, text=True, check=False,
                        env={**os.environ, 'XLA_FLAGS': ''})  # With XLA's optimizations.
  assert done.returncode == 0, done.stderr[-2000:]
  lines = [line.split() for line in done.stdout.splitlines() if line.startswith('rss ')]
  return {mark: int(size) for _, mark, size in lines}


@pytest.mark.slow
@pytest.mark.parametrize('loader', ['memory', 'streaming'])
def test_two_thousand_steps_hold_the_memory_flat(tmp_path, digits_dir, loader):
  found = memory(tmp_path, digits_dir, (500, 1990), f'--config.data.loader={loader}',
                 '--config.teacher.train.length=2000', '--config.teacher.train.evaluate_every=200',
                 '--config.teacher.train.milestones=1000', '--config.log_every_steps=50')
  assert found['1990'] - found['500'] < 24 * MB


with tfds.core.registered.skip_registration():
  class Large(tfds.core.GeneratorBasedBuilder):
    """400 images of 768 kB, 300 MB in all, that take little space on disk."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          'image': tfds.features.Image(shape=(512, 512, 3)),
          'label': tfds.features.ClassLabel(num_classes=2)}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(400), 'test': self._generate_examples(8)}

    def _generate_examples(self, count):
      rng = np.random.default_rng(count)
      for i in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        yield i, {'image': coarse.repeat(64, 0).repeat(64, 1), 'label': i % 2}


def trained_on_large(folder, workdir, loader) -> dict[str, int]:
  return memory(workdir, folder, (4, 99), f'--config.data.loader={loader}',
                '--config.data.name=large', '--config.data.train_split=train',
                '--config.data.test_split=test', '--config.data.validation_fraction=0.02',
                '--config.data.eval_global_batch_size=4',
                '--config.teacher.train.global_batch_size=4', '--config.teacher.train.length=100',
                '--config.teacher.train.evaluate_every=50',
                '--config.teacher.train.milestones=50')


@pytest.mark.slow
def test_the_streaming_loader_needs_less_memory_than_the_data(tmp_path):
  """300 MB of pixels, all of them read; the in-memory loader holds them, as it must."""
  Large(data_dir=str(tmp_path)).download_and_prepare(file_format='array_record')
  streamed, held = (trained_on_large(tmp_path, tmp_path / name, name)
                    for name in ('streaming', 'memory'))
  assert held['99'] - streamed['99'] > 200 * MB
  assert streamed['99'] - streamed['4'] < 200 * MB  # What is freed is kept for the next batch.
