"""Whole runs of models that keep collections of their own and draw from streams of their own."""
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors, main
from kdih.data import sampling
from kdih.data.spec import DataSpec
from kdih.phases import exported_variables, networks
from tests.helpers.runs import exported, read_config
from tests.helpers.started import listening

KEPT = 'tests.helpers.odd_nets:Kept'
PHASES = ('teacher', 'heads', 'student/dih', 'student/dml')


def kept_config(workdir, digits_dir, *overrides):
  config = read_config(
      workdir, digits_dir, f'--config.teacher.name={KEPT}', f'--config.student.name={KEPT}',
      '--config.student.methods=dih,dml', '--config.methods.dml.peers=student',
      *(f'--config.{override}' for override in overrides))
  config.student.kwargs.width = 3
  return config


@pytest.fixture(scope='module')
def whole(tmp_path_factory, digits_dir):
  workdir = tmp_path_factory.mktemp('whole')
  main.run(kept_config(workdir, digits_dir), workdir)
  return workdir


def run_in_pieces(config, workdir, monkeypatch) -> int:
  """Runs, and interrupts each phase once; how often it was interrupted."""
  batches, stops = sampling.train_batches, 0

  def interrupted(subset, batch_size, seed, start, stop):
    for step, batch in enumerate(batches(subset, batch_size, seed, start, stop), start):
      if step == 3 and not start:
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch

  with monkeypatch.context() as patch:
    patch.setattr(sampling, 'train_batches', interrupted)
    while True:
      try:
        with listening():
          main.run(config, workdir)
        return stops
      except errors.PreemptedError:
        stops += 1


@pytest.mark.slow
def test_a_run_that_was_cut_off_in_every_phase_has_the_same_bits(
    tmp_path, digits_dir, whole, monkeypatch):
  assert run_in_pieces(kept_config(tmp_path, digits_dir), tmp_path, monkeypatch) == len(PHASES)
  for phase in PHASES:
    one, other = exported(whole, phase), exported(tmp_path, phase)
    assert one.keys() == other.keys()
    for name, value in one.items():
      assert value.tobytes() == other[name].tobytes(), name


@pytest.mark.slow
@pytest.mark.parametrize('phase', ['teacher', 'student/dih', 'student/dml'])
def test_what_a_model_keeps_is_exported_loaded_and_applied(whole, phase):
  model, variables, meta = exported_variables.load_model(whole / phase / 'variables', model=KEPT)
  assert variables['ema']['count'] in (2, 4, 6)
  assert np.any(variables['ema']['mean'] != 0)
  images = jnp.ones((2, *meta['data']['image_shape']))
  others = {**variables, 'ema': {**variables['ema'], 'mean': variables['ema']['mean'] + 1}}
  logits = [model.apply(v, images, train=False) for v in (variables, others)]
  assert not np.array_equal(*logits)


@pytest.mark.slow
def test_a_teacher_that_exists_brings_what_it_keeps(tmp_path, digits_dir, whole):
  config = kept_config(tmp_path, digits_dir, 'student.methods=fitnets', 'compute.accumulate=2',
                       'compute.remat=true', f'teacher.variables={whole / "teacher/variables"}')
  results = main.run(config, tmp_path)
  assert results['teacher']['steps'] == 0
  one, other = (exported(workdir, 'teacher') for workdir in (whole, tmp_path))
  assert all(np.array_equal(value, other[name]) for name, value in one.items())
  count = exported(tmp_path, 'student/fitnets')["['ema']['count']"]
  assert count in (16, 20, 24)  # Of two parts each, and 6 steps of preparation.


def test_what_peers_keep_is_kept_beside_the_student(digits_dir):
  built = networks.build(kept_config('unused', digits_dir), DataSpec('made', (8, 8, 1), 10))
  beside = networks.abstract_method(built, 'dml', num_examples=2)
  assert set(beside) == {'params', 'ema'}
  assert jax.tree.map(lambda leaf: leaf.dtype.name, beside['ema']) == {
      'peer1': {'mean': 'float32', 'count': 'int32'}}
