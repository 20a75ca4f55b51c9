"""What changing a field means: for a run that resumes, an average, a sweep, a cache."""
import collections
import dataclasses
import json

import pytest
from hypothesis import given, strategies as st

from kdih.config import fields, protocol
from kdih.config.schema import CACHES, FIXED, FREE, Field, nested
from kdih.config.values import Flag
from tests.helpers.field_values import valid
from tests.helpers.fuzzing import times

CONFIG = json.loads(fields.base().to_json())
VIEWS = {'compute.cache': 'views:8'}
TAPS = {**VIEWS, 'compute.cache_taps': True}
ALL_VIEWS = {'compute.cache': 'all_views'}
# (what the run had, what is changed, what the change counts for): to resume a run, or the teacher
# and heads alone; in an average; in a sweep; for caches of outputs and of taps.
RESUME, TEACHING, AVERAGE, SWEEP, OUTPUTS, FEATURES = 'RTASOF'
TABLE = [
    ({}, {'seed': 31}, 'RT'),
    ({}, {'phases': ['student']}, ''),
    ({}, {'accept': ['data']}, ''),
    ({}, {'dtype': 'bfloat16'}, 'RTASOF'),
    ({'compute.teacher_dtype': 'float32'}, {'dtype': 'bfloat16'}, 'RTASOF'),
    ({}, {'deterministic': False}, 'RT'),
    ({}, {'sync_batch_norm': False}, 'RTAS'),
    ({}, {'log_every_steps': 7}, ''),
    ({}, {'compute.steps_per_call': 7}, ''),
    ({}, {'compute.accumulate': 2}, 'RTAS'),
    ({}, {'compute.fold_batch_norm': False}, 'RT'),
    ({}, {'compute.teacher_dtype': 'float32'}, 'RT'),  # The same as `dtype`.
    ({}, {'compute.teacher_dtype': 'bfloat16'}, 'RTASOF'),
    ({}, {'compute.mean_soft_label': False}, 'RTO'),
    ({}, ALL_VIEWS, 'ROF'),  # Another place to read the same numbers from.
    ({}, VIEWS, 'RASOF'),  # Students see these views alone.
    (ALL_VIEWS, VIEWS, 'RASOF'),
    (VIEWS, {'compute.cache': 'views:9'}, 'RASOF'),
    (TAPS, {'compute.cache': 'views:9'}, 'RTASOF'),
    (VIEWS, {'compute.cache_taps': True}, 'RTAS'),
    ({}, {'compute.cache_place': 'disk'}, ''),
    ({}, {'data.order_seed': 0}, 'RTAS'),
    (ALL_VIEWS, {'data.order_seed': 3}, 'RTAS'),
    (VIEWS, {'data.order_seed': 0}, 'RTAS'),  # Views are chosen by it, and by 0 without.
    (VIEWS, {'data.order_seed': 3}, 'RTASOF'),
    ({}, {'data.name': 'cifar10'}, 'RTASOF'),
    ({}, {'data.test_split': 'test[:9]'}, 'RTAS'),
    ({}, {'data.folder': '/x'}, ''),
    ({}, {'data.padding': 3}, 'RTASOF'),
    ({}, {'data.loader': 'streaming'}, 'RT'),
    ({}, {'data.mean': [0.5, 0.5, 0.5]}, 'RTASOF'),
    ({}, {'teacher.name': 'resnet8'}, 'RT'),
    ({}, {'teacher.kwargs.width': 3}, 'RT'),
    ({}, {'teacher.train.length': 3.0}, 'RTS'),
    ({}, {'teacher.variables': '/x'}, 'RTS'),
    ({'teacher.variables': '/x'}, {'teacher.variables': '/y'}, 'S'),
    ({}, {'heads.variables': '/x'}, 'RT'),
    ({'heads.variables': '/x'}, {'heads.variables': '/y'}, ''),
    ({}, {'heads.taps': ['stage1']}, 'RTASF'),
    ({}, {'heads.train.learning_rate': 0.2}, 'RTAS'),
    ({}, {'student.name': 'resnet20'}, 'RA'),
    ({}, {'student.kwargs.width': 3}, 'RA'),
    ({}, {'student.methods': ['kd']}, ''),
    ({}, {'student.train.length': 3.0}, 'RAS'),
    ({}, {'student.prepare.length': 3.0}, 'RAS'),
    ({}, {'sweep.seeds': [1]}, ''),
    # The same.
    ({}, {'student.train.length': 200}, ''),
    ({'data.mean': [1.0]}, {'data.mean': [1]}, ''),
    ({'student.kwargs.width': 1}, {'student.kwargs.width': 1.0}, '')]


def changed(values, config=CONFIG):
  """A config as nested dicts, with other values of some fields."""
  config = json.loads(json.dumps(config))
  for name, value in values.items():
    *groups, key = name.split('.')
    group = config
    for part in groups:
      group = group.setdefault(part, {})
    group[key] = value
  return config


def compared(config):
  return {
      RESUME: protocol.fixed(config), TEACHING: protocol.fixed(config, student=False),
      AVERAGE: protocol.averaged(config), SWEEP: protocol.swept(config),
      OUTPUTS: protocol.cached(config, 'outputs'), FEATURES: protocol.cached(config, 'taps')}


def counts_for(before, now) -> str:
  before, now = compared(before), compared(now)
  return ''.join(meaning for meaning in before if before[meaning] != now[meaning])


@pytest.mark.parametrize('had, change, expected', TABLE,
                         ids=['{} {}'.format(*(','.join(f'{k}={v}' for k, v in part.items())
                                               for part in row[:2])) for row in TABLE])
def test_what_a_change_counts_for(had, change, expected):
  before = changed(had)
  assert counts_for(before, changed({**had, **change})) == expected


def test_every_field_is_compared_for_something_or_declared_free():
  """A field that may change in a run and differ in an average is declared free in both."""
  everything = compared(changed(TAPS))
  free = {name for name, field in fields.FIELDS.items()
          if field.resume == FREE and field.averaged == FREE}
  leaves = set(fields.FIELDS) - {'teacher.kwargs', 'student.kwargs'}  # These are empty.
  assert set().union(*everything.values()) == leaves - free
  counts = collections.Counter(
      meaning if isinstance(meaning, str) else 'partly'
      for field in fields.FIELDS.values() for meaning in (field.resume, field.averaged))
  assert sum(counts.values()) == 2 * len(fields.FIELDS)
  assert set(counts) == {'free', 'fixed', 'same', 'by the teacher', 'partly'}


def test_what_may_change_within_a_run_may_differ_in_an_average():
  for name, field in fields.FIELDS.items():
    assert not (field.resume == FREE and field.averaged != FREE), name
    assert set(field.caches) <= set(CACHES)
    assert not (field.caches and field.resume == FREE), name


@times(20, 300)
@given(st.sampled_from(sorted(fields.FIELDS)), st.data())
def test_a_free_field_counts_for_nothing_and_a_fixed_one_for_resuming(name, data):
  field = fields.FIELDS[name]
  value = json.loads(json.dumps(data.draw(valid(field.kind))))
  found = counts_for(CONFIG, changed({name: value}))
  if field.resume == FREE:
    assert found == ''
  elif field.resume == FIXED and name not in ('teacher.kwargs', 'student.kwargs'):
    default = json.loads(json.dumps(field.default))
    assert (RESUME in found) == (value != default)


def test_a_config_that_lacks_fields_is_that_with_their_defaults():
  old = {name: value for name, value in CONFIG.items() if name not in ('compute', 'sweep')}
  del old['student']['prepare'], old['data']['order_seed']
  assert counts_for(old, CONFIG) == ''
  assert counts_for(old, changed({'compute.accumulate': 2})) == 'RTAS'
  assert counts_for(old, changed({'student.prepare.length': 200.0})) == 'RAS'


def test_a_field_of_another_version_counts_for_everything():
  assert counts_for(CONFIG, changed({'data.hue': 0.1})) == 'RTASOF'
  assert counts_for(changed({'data.hue': 0.1}), changed({'data.hue': 0.1})) == ''


def test_a_field_that_is_new_keeps_old_runs_as_they_are(monkeypatch):
  new = Field(default=False, kind=Flag(), doc='New.')
  monkeypatch.setitem(fields.FIELDS, 'data.mixed', new)
  assert counts_for(CONFIG, changed({'data.mixed': False})) == ''
  assert counts_for(CONFIG, changed({'data.mixed': True})) == 'RTAS'
  monkeypatch.setitem(fields.FIELDS, 'data.mixed', dataclasses.replace(
      new, resume=FREE, averaged=FREE))
  assert counts_for(CONFIG, changed({'data.mixed': True})) == ''


def test_what_exported_variables_tell_of_their_data_stays_what_earlier_versions_wrote():
  assert protocol.described(CONFIG) == {
      'name': 'digits', 'train_split': 'train', 'test_split': 'test', 'image_key': 'image',
      'label_key': 'label', 'mean': [0.5], 'std': [0.5], 'validation_fraction': 0.1,
      'validation_seed': 0}


def test_options_are_compared_of_the_methods_that_are_asked_for():
  def different(names, **change):
    one, other = (protocol.methods(its, names) for its in (
        CONFIG, changed({name.replace('__', '.'): value for name, value in change.items()})))
    return protocol.differences(one, other)

  assert different(['kd'], methods__dih__alpha=0.5) == []
  assert different(['dih'], methods__dih__alpha=0.5) == [
      'config.methods.dih.alpha (was 0.1, is 0.5)']
  assert different(['dih_at'], methods__dih__alpha=0.5) == [
      'config.methods.dih.alpha (was 0.1, is 0.5)']
  assert different(['dih_at'], methods__dih__gain=1) == []
  assert different(['kd'], methods__kd__learning_rate=0.5) == [
      'config.methods.kd.learning_rate (was None, is 0.5)']
  assert different(['none'], methods__kd__alpha=0.5) == []


def test_nothing_is_changed_by_comparing():
  before = json.dumps(CONFIG)
  compared(CONFIG)
  assert json.dumps(CONFIG) == before
  assert nested({'a.b': 1, 'a.c': 2, 'd': 3}) == {'a': {'b': 1, 'c': 2}, 'd': 3}


def test_what_an_earlier_version_kept_in_manifests_is_not_compared():
  before = json.loads(json.dumps(CONFIG))
  before['sweep']['dry_run'] = True
  for compared in (protocol.fixed, protocol.averaged, protocol.swept):
    assert compared(before) == compared(CONFIG)
