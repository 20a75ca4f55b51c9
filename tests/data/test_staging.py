"""Copies of data sets on an object store: made once, anew after a change, and never half."""
import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import uuid

import fsspec
import pytest

from kdih import errors
from kdih.data import staging
from tests.helpers.damage import contents
from tests.helpers.made_data import message
from tests.helpers.runs import ROOT

FILES = {'1.0.0/features.json': b'{}', '1.0.0/small-train.array_record': bytes(range(256)),
         'more/2.0.0/features.json': b'[]'}


@pytest.fixture
def store(tmp_path, monkeypatch):
  """The address of a folder on an object store, which holds FILES as the data set `small`."""
  monkeypatch.setenv('HOME', str(tmp_path))
  return filled(f'memory://{uuid.uuid4().hex}/tfds')


@pytest.fixture
def shared(tmp_path, monkeypatch):
  """As `store`, but of a store that other processes can read."""
  monkeypatch.setenv('HOME', str(tmp_path))
  return filled(f'file://{tmp_path}/tfds')


def filled(address):
  for name, content in {f'small/{name}': content for name, content in FILES.items()}.items():
    put(f'{address}/{name}', content)
  put(f'{address}/other/1.0.0/features.json', b'of another data set')
  return address


def put(address, content):
  files, path = fsspec.url_to_fs(address)
  files.makedirs(os.path.dirname(path), exist_ok=True)
  files.pipe_file(path, content)


@contextlib.contextmanager
def staged_elsewhere(store):
  """Yields the copy of another process, which uses it meanwhile."""
  program = ('import sys; from kdih.data import staging; '
             'print(staging.stage(sys.argv[1], "small"), flush=True); sys.stdin.read()')
  with subprocess.Popen([sys.executable, '-c', program, store], cwd=ROOT, text=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    yield process.stdout.readline().strip()
    process.communicate()
  assert process.returncode == 0


@pytest.fixture
def copied(monkeypatch):
  """The sources of all copies that are made."""
  sources, get = [], fsspec.AbstractFileSystem.get
  monkeypatch.setattr(fsspec.AbstractFileSystem, 'get', lambda self, source, *args, **kwargs: (
      sources.append(source), get(self, source, *args, **kwargs)))
  return sources


def everything(tmp_path):
  return {name: content for name, content in contents(tmp_path / '.cache').items()
          if not name.endswith('.lock')}


@pytest.mark.parametrize('name', ['small', 'small/more', 'small:1.0.0', 'small/1.0.0',
                                  'small/more:2.0.0'])
def test_a_data_set_is_copied_once_with_all_its_versions(store, tmp_path, copied, name):
  folder = pathlib.Path(staging.stage(store, name))
  assert contents(folder / 'small') == FILES
  assert staging.stage(store, name) == staging.staged(store, name) == str(folder)
  assert len(copied) == 1 and len(everything(tmp_path)) == 3


def rewrite(store):
  """By as many bytes."""
  put(f'{store}/small/1.0.0/small-train.array_record', bytes(range(256))[::-1])


def add(store):
  put(f'{store}/small/1.0.0/small-test.array_record', b'new')


def remove(store):
  files, path = fsspec.url_to_fs(f'{store}/small/more/2.0.0/features.json')
  files.rm(path)


@pytest.mark.parametrize('change', [rewrite, add, remove])
def test_a_data_set_that_has_changed_is_copied_anew(shared, tmp_path, copied, change):
  with staged_elsewhere(shared) as before:
    pass
  assert contents(pathlib.Path(before) / 'small') == FILES
  change(shared)
  after = staging.stage(shared, 'small')
  files, path = fsspec.url_to_fs(f'{shared}/small')
  assert contents(pathlib.Path(after) / 'small') == {
      name.removeprefix(f'{path}/'): files.cat_file(name) for name in files.find(path)}
  assert before != after and not os.path.exists(before)  # No disk is filled by old copies.
  assert staging.stage(shared, 'small') == after and len(copied) == 1


def test_a_copy_stays_while_a_process_uses_it(shared):
  with staged_elsewhere(shared) as first:
    add(shared)
    second = staging.stage(shared, 'small')
    assert contents(pathlib.Path(first) / 'small') == FILES
    assert staging.staged(shared, 'small') == second
    rewrite(shared)
    third = staging.stage(shared, 'small')
    assert len({first, second, third}) == 3 and all(map(os.path.exists, (first, second, third)))
  staging.stage(shared, 'small')
  assert not os.path.exists(first) and os.path.exists(second)  # This process has used the second.


def test_a_copy_that_was_removed_by_hand_is_kept_once_it_is_made_anew(shared):
  first = staging.stage(shared, 'small')
  shutil.rmtree(first)
  assert staging.stage(shared, 'small') == first
  add(shared)
  with staged_elsewhere(shared) as second:
    assert contents(pathlib.Path(first) / 'small') == FILES and first != second


def test_without_locks_no_copy_is_removed(store, monkeypatch):
  def missing(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', missing)
  before = staging.stage(store, 'small')
  rewrite(store)
  after = staging.stage(store, 'small')
  assert contents(pathlib.Path(before) / 'small') == FILES
  assert before != after == staging.staged(store, 'small')


def test_copies_of_other_data_sets_stay(store):
  other = staging.stage(store, 'other')
  small = staging.stage(store, 'small')
  rewrite(store)
  assert staging.stage(store, 'small') != small
  assert staging.stage(store, 'other') == other and os.path.exists(other)


class Killed(BaseException):
  """Raised where the process dies: what would clean up does not run."""


def test_a_copy_that_was_killed_is_removed_and_made_anew(store, tmp_path, monkeypatch):
  """The process dies after the first file: nothing of it is taken for a copy, or stays."""
  def die(self, source, target, **_):
    os.makedirs(target)
    pathlib.Path(target, 'features.json').write_bytes(b'half')
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(fsspec.AbstractFileSystem, 'get', die)
    patch.setattr(shutil, 'rmtree', lambda *_, **__: None)
    patch.setattr('tempfile.TemporaryDirectory.cleanup', lambda _: None)
    with pytest.raises(Killed):
      staging.stage(store, 'small')
  assert [path.read_bytes() for path in tmp_path.rglob('features.json')] == [b'half']
  assert not os.path.exists(pathlib.Path(staging.staged(store, 'small')) / 'small')
  folder = pathlib.Path(staging.stage(store, 'small'))
  assert contents(folder / 'small') == FILES
  assert sorted(everything(tmp_path).values()) == sorted(FILES.values())


def test_a_copy_whose_removal_was_killed_is_not_taken_for_a_whole_one(shared, monkeypatch):
  def die(folder, *_, **__):
    next(pathlib.Path(folder).rglob('features.json')).unlink()
    raise Killed

  with staged_elsewhere(shared) as first:
    pass
  add(shared)
  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(shutil, 'rmtree', die)
    staging.stage(shared, 'small')
  files, path = fsspec.url_to_fs(f'{shared}/small/1.0.0/small-test.array_record')
  files.rm(path)
  assert staging.stage(shared, 'small') == first
  assert contents(pathlib.Path(first) / 'small') == FILES


def test_a_copy_that_fails_leaves_nothing_and_is_named(store, tmp_path, monkeypatch):
  def fail(self, source, target, **_):
    os.makedirs(target)
    pathlib.Path(target, 'features.json').write_bytes(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(fsspec.AbstractFileSystem, 'get', fail)
  found = message(staging.stage, store, 'small', kind=errors.DataError)
  assert found == (f'config.data.data_dir: {store}/small cannot be copied to the local disk '
                   '([Errno 28] No space left on device)')
  assert everything(tmp_path) == {}


@pytest.mark.parametrize('address, expected', [
    ('memory://none/tfds', 'there is no small in memory://none/tfds; prepare it on a local disk'),
    ('nosuch://b/tfds', 'nosuch://b/tfds/small cannot be copied to the local disk (')])
def test_a_data_set_that_is_not_there_is_named(tmp_path, monkeypatch, address, expected):
  monkeypatch.setenv('HOME', str(tmp_path))
  found = message(staging.stage, address, 'small', kind=errors.DataError)
  assert found.startswith(f'config.data.data_dir: {expected}')
  assert everything(tmp_path) == {}
