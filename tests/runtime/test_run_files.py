"""Every JSON file of a run folder is read in one way: complete, or refused in one line."""
import copy
import errno
import fcntl
import json
import os
import resource
import subprocess
import sys
import tarfile
import typing

import gcsfs.retry
import msgspec
import numpy as np
import pytest
from etils import epath
from hypothesis import given, strategies as st

from kdih import errors
from kdih.runtime import files, run_files
from kdih.training import metric_log
from tests.helpers.damage import places
from tests.helpers.fuzzing import JSON, times
from tests.helpers.made_pairs import heads as analysed_heads
from tests.helpers.made_results import heads, result
from tests.helpers.runs import ROOT

CONFIG = {'data': {'name': 'digits', 'folder': ''}, 'teacher': {'name': 't'},
          'student': {'name': 's', 'methods': ['ce']}, 'methods': {'ce': {'kind': 'ce'}}}
COST = {'parameters': 3, 'flops': None, 'latency_ms': 0.5, 'images_per_second': 9.0, 'bytes': 12,
        'fingerprint': 'f'}
TEACHER, STUDENT = result(0.8), result(0.6, 0.7, accepted=['x'], protocol={'seed': 3})
HEADS = {**heads('stage1', 'stage2', 'stage3'), **analysed_heads(4), 'weights': {'a': [1.0] * 4}}
FILES = {
    'manifest': (run_files.Manifest, {
        'config': CONFIG, 'command': 'kdih', 'versions': {'jax': '1'}, 'devices': ['cpu'],
        'identity': {'data': {}, 'computation': {'methods': {}}}, 'accepted': ['x']}),
    'teacher': (run_files.TeacherResult, TEACHER),
    'heads': (run_files.HeadsResult, HEADS),
    'student': (run_files.StudentResult, STUDENT),
    'results': (run_files.Results, {
        'teacher': TEACHER, 'heads': HEADS, 'student': {'ce': STUDENT},
        'compression': {'device': 'cpu', 'teacher': COST, 'student': COST}}),
    'sweep': (list[run_files.SweepCommand], [
        {'pairs': [['t', 's', ['ce']]], 'seeds': [1], 'left_out': {'t/s/kd': 'x'},
         'config': CONFIG, 'accepted': ['x']}]),
    'failure': (run_files.Failure, {'error': 'x', 'time': 1.0, 'traceback': 'y'}),
    'rewind': (run_files.Rewind, {'step': 2, 'learning_rate_scale': 0.5}),
    'cache': (run_files.CacheIndex, {'identity': {'data': 'd'}, 'block': 2, 'digests': ['x']}),
}


def parent(content, path):
  for key in path[:-1]:
    content = content[key]
  return content


def drop(content, path, _):
  del parent(content, path)[path[-1]]


def replace(content, path, value):
  parent(content, path)[path[-1]] = value


def refused(path, kind) -> bool:
  """Reads; returns whether that was refused, in one line that names the file."""
  try:
    run_files.read(path, kind)
  except errors.FileError as error:
    assert str(error).startswith(f'{path} is damaged (') and str(error).isprintable()
    assert str(error).endswith('; restore it from a copy, or remove it to have it made again')
    return True
  return False


@pytest.mark.parametrize('name', FILES)
def test_a_file_is_read_as_it_was_written_with_fields_of_other_versions(tmp_path, name):
  kind, content = FILES[name]
  whole = [*content, content[0]] if isinstance(content, list) else {**content, 'other': {'x': 1}}
  run_files.write(tmp_path / 'x.json', whole)
  assert run_files.read(tmp_path / 'x.json', kind) == whole
  text = (tmp_path / 'x.json').read_text()
  assert json.loads(text) == whole and text == json.dumps(whole, indent=2) + '\n'


@pytest.mark.parametrize('name', FILES)
def test_a_file_with_any_value_dropped_or_replaced_is_read_or_refused(tmp_path, name):
  kind, content = FILES[name]
  paths = list(places(content))[1:]

  @times(30, 1000)
  @given(st.sampled_from(paths), st.sampled_from([drop, replace]), JSON)
  def try_it(path, change, value):
    changed = copy.deepcopy(content)
    change(changed, path, value)
    (tmp_path / 'x.json').write_text(json.dumps(changed))
    refused(tmp_path / 'x.json', kind)

  try_it()


@pytest.mark.parametrize('name', FILES)
def test_every_number_and_text_that_is_relied_on_has_a_type(tmp_path, name):
  """Within the fields of `kind`; a value of another type is refused."""
  kind, content = FILES[name]
  refusals = 0
  for path in list(places(content))[1:]:
    changed = copy.deepcopy(content)
    replace(changed, path, [[{}]])
    (tmp_path / 'x.json').write_text(json.dumps(changed))
    refusals += refused(tmp_path / 'x.json', kind)
  assert refusals >= {'failure': 2, 'cache': 4, 'rewind': 2}.get(name, 7)


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('damage', [
    b'', b'{"a": 1', b'[' * 20_000, b'[' * 20_000 + b']' * 20_000, b'[' * 60 + b']' * 60,
    b'{"a":' * 60 + b'1' + b'}' * 60, b'\xff\xfe{', b'{"a": "\xff"}', b'{"a": NaN}', b'\0' * 99,
    b'{"a": 1e999}', b'{"a": 1' + b'0' * 5000 + b'}', b'3', b'"\\ud800"', b'{"a": "\\u0001'])
def test_what_is_not_json_of_a_file_is_refused(tmp_path, name, damage):
  (tmp_path / 'x.json').write_bytes(damage)
  assert refused(tmp_path / 'x.json', FILES[name][0])


@pytest.mark.parametrize('name', FILES)
def test_a_file_that_is_cut_short_anywhere_is_refused(tmp_path, name):
  kind, content = FILES[name]
  whole = run_files.encode(content)
  for end in range(0, len(whole), max(1, len(whole) // 50)):
    (tmp_path / 'x.json').write_bytes(whole[:end])
    assert refused(tmp_path / 'x.json', kind)


def test_a_huge_file_and_a_folder_are_refused_and_a_missing_one_is_none(tmp_path):
  with (tmp_path / 'huge.json').open('wb') as file:
    file.truncate(2**40)  # Takes no room on the disk.
  (tmp_path / 'folder.json').mkdir()
  assert refused(tmp_path / 'huge.json', dict) and refused(tmp_path / 'folder.json', dict)
  assert run_files.read(tmp_path / 'none.json', dict) is None


@pytest.mark.parametrize(('field', 'value'), [
    ('parameters', 10**400), ('top1', 1.5), ('top1', -0.1), ('top5', 2), ('agreement', True),
    ('loss', 1e400)])
def test_scores_are_fractions_and_finite(tmp_path, field, value):
  changed = copy.deepcopy(STUDENT)
  (changed if field == 'parameters' else changed['test_last'])[field] = value
  (tmp_path / 'x.json').write_text(json.dumps(changed).replace('Infinity', '1e400'))
  assert refused(tmp_path / 'x.json', run_files.StudentResult)


@pytest.mark.parametrize('scale', [0, 1e-60, 1.5])
def test_a_rewind_with_a_factor_that_leaves_no_learning_rate_or_raises_it_is_refused(
    tmp_path, scale):
  run_files.write(tmp_path / 'x.json', {'step': 2, 'learning_rate_scale': scale})
  assert refused(tmp_path / 'x.json', run_files.Rewind)


def test_null_is_allowed_only_where_kdih_writes_it():
  """Readers need to expect it nowhere else."""
  allowed = {
      f'{kind.__name__}.{name}' for kind in vars(run_files).values()
      if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
      for name, hint in typing.get_type_hints(kind).items()
      if name in kind.__annotations__ and type(None) in typing.get_args(hint)}
  assert allowed == {'_Scores.loss', '_Measured.val', 'TeacherResult.flops', '_Cost.flops',
                     'CheckpointMeta.metrics', 'CheckpointMeta.best', 'CheckpointMeta.lost',
                     '_ExportedData.classes'}


@pytest.mark.parametrize(('name', 'field'), [
    ('student', 'accepted'), ('student', 'protocol'), ('heads', 'analysis'), ('results', 'teacher'),
    ('results', 'heads'), ('results', 'student'), ('results', 'compression'),
    ('manifest', 'versions'), ('manifest', 'identity'), ('manifest', 'accepted')])
def test_null_is_not_taken_for_a_field_that_is_absent(tmp_path, name, field):
  kind, content = FILES[name]
  run_files.write(tmp_path / 'x.json', {**content, field: None})
  assert refused(tmp_path / 'x.json', kind)
  run_files.write(tmp_path / 'x.json', {key: content[key] for key in content if key != field})
  assert not refused(tmp_path / 'x.json', kind)


def test_numpy_and_numbers_that_are_not_finite_can_be_written(tmp_path):
  run_files.write(tmp_path / 'x.json', {
      'a': np.float64(0.5), 'b': np.arange(2), 'c': float('nan'), 'd': (1, 2)})
  assert json.loads((tmp_path / 'x.json').read_text()) == {
      'a': 0.5, 'b': [0, 1], 'c': None, 'd': [1, 2]}


def test_a_text_that_is_no_unicode_is_refused_before_anything_is_written(tmp_path):
  with pytest.raises(errors.ConfigError, match='not valid Unicode text'):
    run_files.write(tmp_path / 'x.json', {'folder': 'x\udcff'})
  assert not list(tmp_path.iterdir())


KINDS = {'manifest.json': run_files.Manifest, 'sweep.json': list[run_files.SweepCommand],
         'results.json': run_files.Results, 'run_finished.json': run_files.Results,
         'digits.json': run_files.Results, 'cifar100_laptop.json': run_files.Results}


def test_the_published_files_of_earlier_versions_are_read():
  results = ROOT / 'launch/results'
  paths = [ROOT / 'tests/fixtures/run_finished.json',
           *(path for path in results.rglob('*.json')
             if path.name in KINDS or path.name == 'result.json')]
  assert len(paths) > 25
  for path in paths:
    content = (run_files.read(path, KINDS[path.name]) if path.name in KINDS
               else run_files.read_result(path.parents[1], path.parent.name))
    assert content, path


@pytest.mark.parametrize('name', ['run', 'sweep'])
def test_the_folders_of_an_earlier_version_are_read(tmp_path, name):
  with tarfile.open(ROOT / f'tests/fixtures/{name}.tar.gz') as archive:
    archive.extractall(tmp_path, filter='data')
  read = {'manifest.json': 0, 'sweep.json': 0, 'result.json': 0}
  for path in tmp_path.rglob('*.json'):
    if path.name in read:
      read[path.name] += bool(run_files.read_result(path.parents[1], path.parent.name)
                              if path.name == 'result.json' else
                              run_files.read(path, KINDS[path.name]))
  assert read['manifest.json'] and read['result.json'] >= 4


# metrics.jsonl


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, make):
  make(tmp_path / 'manifest.json')
  assert refused(tmp_path / 'manifest.json', run_files.Manifest)
  make(tmp_path / 'metrics.jsonl')
  assert metric_log.read_metrics(tmp_path / 'metrics.jsonl') == []


# It dies, or waits, when the temporary file is complete.
WRITER = """
import os, sys, time
from kdih.runtime import run_files

def hook(event, args):
  if event == 'os.rename':
    if sys.argv[2] == 'dies':
      os._exit(9)
    print(args[0], flush=True)
    sys.stdin.read()

sys.addaudithook(hook)
run_files.write(sys.argv[1], {'x': 'half'})
"""


def writer(path, what, *within):
  return subprocess.Popen([*within, sys.executable, '-c', WRITER, path, what], cwd=ROOT, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_temporary_file_of_a_killed_process_is_removed_by_the_next_that_writes_in_the_folder(
    tmp_path):
  """Whatever it writes: a `failure.json` may never be written again."""
  with writer(tmp_path / 'failure.json', 'dies') as process:
    process.communicate()
  left, = tmp_path.iterdir()
  assert left.name.startswith('.failure.json.')
  (tmp_path / '.b.json.notes.tmp').touch()  # It is the user's.
  run_files.write(tmp_path / 'result.json', {'x': 1})
  assert {path.name for path in tmp_path.iterdir()} == {'result.json', '.b.json.notes.tmp'}


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  """Else a power cut could leave an empty one."""
  path, synced, replace, fsync = tmp_path / 'a.json', [], os.replace, os.fsync

  def recorded(descriptor):
    fsync(descriptor)
    synced.extend(temporary.read_bytes() for temporary in tmp_path.iterdir())

  def checked(source, target):
    assert synced == [epath.Path(source).read_bytes()] == [b'{"x": 1}\n']
    replace(source, target)

  monkeypatch.setattr(os, 'fsync', recorded)
  monkeypatch.setattr(os, 'replace', checked)
  files.write_atomically(path, '{"x": 1}\n')
  assert run_files.read(path, dict) == {'x': 1} and list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_that_is_being_written_stays(tmp_path):
  path = tmp_path / 'a.json'
  with writer(path, 'waits') as process:
    temporary = process.stdout.readline().strip()
    run_files.write(path, {'x': 1})
    assert set(tmp_path.iterdir()) == {path, tmp_path / temporary}
    assert run_files.read(path, dict) == {'x': 1}
    process.communicate()
  assert process.returncode == 0
  assert run_files.read(path, dict) == {'x': 'half'} and list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_that_was_removed_before_it_was_locked_is_made_again(
    tmp_path, monkeypatch):
  """Between these two steps another writer takes it for left over."""
  lock, removed = fcntl.flock, []

  def lock_late(file, operation):
    if not removed:
      removed.extend(tmp_path.iterdir())
      files._remove_unless_locked(epath.Path(removed[0]))
    lock(file, operation)

  monkeypatch.setattr(fcntl, 'flock', lock_late)
  run_files.write(tmp_path / 'a.json', {'x': 1})
  assert list(tmp_path.iterdir()) == [tmp_path / 'a.json'] and len(removed) == 1


def test_without_locks_files_are_written_and_none_is_taken_for_left_over(tmp_path, monkeypatch):
  def missing(*_):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

  monkeypatch.setattr(fcntl, 'flock', missing)
  other = tmp_path / f'.a.json.{"0" * 16}.tmp'
  other.touch()
  run_files.write(tmp_path / 'a.json', {'x': 1})
  assert set(tmp_path.iterdir()) == {tmp_path / 'a.json', other}


def test_processes_of_one_number_write_at_the_same_time(tmp_path):
  """So it is in containers, which may also have one host name."""
  within = ('unshare', '--fork', '--pid', '--mount-proc')
  if subprocess.run([*within, 'true'], capture_output=True, check=False).returncode:
    pytest.skip('this user may not make a container')
  path = tmp_path / 'a.json'
  with writer(path, 'waits', *within) as one, writer(path, 'waits', *within) as other:
    assert one.stdout.readline() != other.stdout.readline()
    for process in (one, other):
      process.communicate()
      assert process.returncode == 0 and run_files.read(path, dict) == {'x': 'half'}
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('error, reason', [
    *((OSError(number, os.strerror(number)), os.strerror(number))
      for number in (errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES)),
    (gcsfs.retry.HttpError({'code': 503, 'message': 'Backend error'}), 'Backend error, 503')])
def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, error, reason):
  path = tmp_path / 'result.json'
  run_files.write(path, TEACHER)

  def fail(_):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(type(epath.Path(path)), 'read_bytes', fail)
    with pytest.raises(errors.UnreadableError) as raised:
      run_files.read(path, run_files.TeacherResult)
  assert str(raised.value) == (
      f'{path} cannot be read ({reason}); make it readable, or run the same command again')
  assert run_files.read(path, run_files.TeacherResult) == TEACHER


def test_what_the_system_cannot_tell_is_not_called_missing(tmp_path, monkeypatch):
  """`Path.exists` says no: a finished phase would seem not to have begun."""
  path, stat = tmp_path / 'result.json', os.stat
  run_files.write(path, TEACHER)

  def stale(asked, *args, **kwargs):
    if os.fspath(asked) == str(path):
      raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return stat(asked, *args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'stat', stale)
    assert not epath.Path(path).exists()
    with pytest.raises(errors.UnreadableError, match='Stale file handle'):
      run_files.read(path, run_files.TeacherResult)
    with pytest.raises(OSError, match='Stale file handle'):
      files.is_file(epath.Path(path))
  assert run_files.read(path, run_files.TeacherResult) == TEACHER


@pytest.mark.parametrize('name', ['none', 'a.json/below', 'loop', 'x' * 300, 'a\0b'])
def test_where_there_is_nothing_nothing_is_read(tmp_path, name):
  (tmp_path / 'a.json').touch()
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  assert run_files.read(tmp_path / name, dict) is None


def test_a_folder_in_the_place_of_a_file_is_called_one(tmp_path):
  (tmp_path / 'report.md').mkdir()
  with pytest.raises(IsADirectoryError) as raised:
    files.write_atomically(tmp_path / 'report.md', 'text')
  assert str(raised.value) == f"[Errno 21] Is a directory: '{tmp_path}/report.md'"
  assert [path.name for path in tmp_path.iterdir()] == ['report.md']


def test_a_file_that_cannot_be_written_is_named_and_unchanged(tmp_path):
  run_files.write(tmp_path / 'a.json', {'x': 1})
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
  try:
    with pytest.raises(OSError, match='a.json') as raised:
      run_files.write(tmp_path / 'a.json', {'x': 'y' * 1000})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / 'a.json'))
  assert [path.name for path in tmp_path.iterdir()] == ['a.json']
  assert run_files.read(tmp_path / 'a.json', dict) == {'x': 1}
