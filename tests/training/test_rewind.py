"""Rewinds: where training goes back to, and that a run killed or stopped then ends the same."""
import contextlib
import io
import itertools
import json
import sys

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from kdih import errors
from kdih.runtime import digests, files, preemption
from kdih.training import checkpoints as checkpoints_lib, loop, state
from kdih.training.loop_schedule import LoopSchedule
from tests.helpers.limits import EVERY, LIMITS, STEPS
from tests.helpers.slow import slow


class Killed(BaseException):
  """Ends a run as SIGKILL does: nothing of the loop runs after it."""


def step(train_state, frozen, resident, feed):
  """Moves the parameter by an amount that depends on the scale and the step."""
  number, scale = int(train_state.step) + 1, float(train_state.learning_rate_scale)
  params = jax.tree.map(lambda x: x + scale * number, train_state.params)
  loss = np.inf if scale > LIMITS.get(number, 1) else 1.0
  return (train_state.replace(step=np.int32(number), params=params), {'loss': np.array([loss])})


def train(folder, max_rewinds=10, log_every=1, every=EVERY) -> tuple[str, dict]:
  """The digest of the last state, and the metrics by step, without speeds."""
  initial = state.create({'params': {'w': np.zeros(3, np.float32)}}, optax.sgd(0.1), 0)
  program = loop.TrainProgram(
      step=step, frozen={}, resident={}, feeds=lambda start, sizes: iter(sizes),
      evaluate=lambda variables, frozen: {'top1': float(variables['params']['w'][0]) % 1,
                                          'loss': 1.0},
      schedule=LoopSchedule(phase='p', total_steps=STEPS, evaluate_every=every, log_every=log_every,
                            batch_size=1, steps_per_epoch=1.0, max_rewinds=max_rewinds))
  saved = checkpoints_lib.Checkpoints(folder / 'checkpoints', initial)
  outcome = loop.train(program, loop.Learner(
      state=initial, checkpoints=saved, directory=folder, phase='p', events=False))
  best = saved.restore_best()
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return digests.of([outcome.state, best.variables]), {
      'rewinds': outcome.rewinds, 'files': sorted(
          path.name for path in (folder / 'checkpoints').glob('*')),
      'lines': [{name: x for name, x in line.items() if name != 'examples_per_second'}
                for line in lines]}


def train_in(folder, **options):
  folder.mkdir(exist_ok=True)
  return train(folder, **options)


@pytest.fixture(scope='module')
def whole_and_said(tmp_path_factory):
  with contextlib.redirect_stderr(io.StringIO()) as said:
    return train(tmp_path_factory.mktemp('whole')), said.getvalue()


@pytest.fixture
def whole(whole_and_said):
  return whole_and_said[0]


def test_training_goes_back_to_the_last_checkpoint_that_has_not_failed_before(whole_and_said):
  said = [line.partition('back to step ')[2] for line in whole_and_said[1].splitlines()
          if 'back to step' in line]
  # The checkpoint of step 6 is given up, and written again on the way from step 4.
  assert said == [f'{back} with the learning rate x {scale:g}' for back, scale in [
      (2, 1 / 2), (6, 1 / 4), (4, 1 / 8), (6, 1 / 16), (10, 1 / 32), (12, 1 / 64), (10, 1 / 128)]]


@pytest.mark.parametrize('stops', [
    lambda call: call in (5, 13), slow(lambda call: call % 3 == 0), slow(lambda call: True)],
                         ids=['twice', 'every third step', 'every step'])
def test_a_run_that_is_asked_to_stop_rewinds_as_if_it_had_not_been(
    tmp_path, monkeypatch, whole, stops):
  calls = itertools.count(1)
  monkeypatch.setattr(preemption, 'reached', lambda: stops(next(calls)))
  found, stopped = None, 0
  while not found:
    try:
      found = train(tmp_path)
    except errors.PreemptedError:
      stopped += 1
  assert found == whole and stopped == sum(map(stops, range(1, next(calls))))


@pytest.mark.slow
@pytest.mark.parametrize('when', ['before', 'after'])
@pytest.mark.parametrize('operation', ['record', 'removal', 'deletion'])
def test_a_run_killed_at_any_moment_of_its_rewinds_ends_bit_identical(
    tmp_path, monkeypatch, whole, operation, when):
  holder, name = {'record': (files, 'write_atomically'),
                  'removal': (checkpoints_lib.Checkpoints, 'drop'),
                  'deletion': (ocp.CheckpointManager, 'delete')}[operation]
  real = getattr(holder, name)
  seen, kill_at = 0, 0

  def killing(*args, **kwargs):
    nonlocal seen
    if operation == 'record' and args[0].name != 'rewind.json':
      return real(*args, **kwargs)
    seen += 1
    if seen == kill_at and when == 'before':
      raise Killed
    result = real(*args, **kwargs)
    if seen == kill_at and when == 'after':
      raise Killed
    return result

  monkeypatch.setattr(holder, name, killing)
  for kill_at in range(1, 100):
    seen = 0
    folder = tmp_path / str(kill_at)
    folder.mkdir()
    try:
      assert train(folder) == whole
      break
    except Killed:
      monkeypatch.setattr(holder, name, real)
      assert train(folder) == whole, kill_at
      monkeypatch.setattr(holder, name, killing)
  assert kill_at > {'record': 7, 'removal': 2, 'deletion': 7}[operation]


@pytest.mark.slow
def test_a_run_killed_right_after_a_rewind_was_recorded_goes_on_from_it(tmp_path, monkeypatch):
  def killed(*_):
    raise Killed

  monkeypatch.setitem(LIMITS, 3, 1 / 4)
  expected = train_in(tmp_path / 'whole')
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints_lib.Checkpoints, 'drop', killed)
    with pytest.raises(Killed):
      train_in(tmp_path / 'cut')
  assert train_in(tmp_path / 'cut') == expected


def test_no_rewind_is_left_after_as_many_as_are_allowed_of_several_commands(tmp_path):
  for _ in range(2):
    with pytest.raises(errors.NotFiniteError, match='at step 7; the last good checkpoint is the '):
      train(tmp_path, max_rewinds=3)
  assert json.loads((tmp_path / 'checkpoints' / 'rewind.json').read_text()) == {
      'step': 4, 'learning_rate_scale': 0.125}


def test_a_run_that_resumes_writes_the_lines_that_it_would_have_written(tmp_path, monkeypatch):
  """With lines that are means of several steps."""
  monkeypatch.setattr(sys.modules[__name__], 'LIMITS', {})
  save, folders = checkpoints_lib.Checkpoints.save, (tmp_path / 'whole', tmp_path / 'cut')

  def killed(checkpoints, train_state, *args, **kwargs):
    save(checkpoints, train_state, *args, **kwargs)
    if train_state.step == 8:
      raise Killed

  for folder in folders:
    folder.mkdir()
  expected = train(folders[0], log_every=3, every=8)
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints_lib.Checkpoints, 'save', killed)
    with pytest.raises(Killed):
      train(folders[1], log_every=3, every=8)
  assert train(folders[1], log_every=3, every=8) == expected
