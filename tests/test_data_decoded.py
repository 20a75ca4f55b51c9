"""Decoded splits that are kept for the next start."""
import os
import shutil

import numpy as np
import pytest
from conftest import read_config

from kdih.data import builders, decoded, source as source_lib

EVERYTHING = np.arange(200)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """The folder of the cache, in which small splits are kept too."""
  monkeypatch.setattr(decoded, '_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(decoded, '_FEWEST', 10)
  return tmp_path / 'cache'


def open_train(tmp_path, data_dir, *overrides) -> source_lib.Source:
  config = read_config(tmp_path, data_dir, *overrides)
  return source_lib.open_split(builders.open_builder(config.data), 'train_split', config.data)


def forbid_decoding(source, monkeypatch):
  def read(indices):
    raise AssertionError('decoded again')
  monkeypatch.setattr(source, 'read', read)


def assert_same(found, expected):
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, other)
    assert one.dtype == other.dtype


def test_what_was_decoded_once_is_not_decoded_again(tmp_path, digits_dir, cache, monkeypatch):
  source = open_train(tmp_path, digits_dir)
  expected = source.read(EVERYTHING)
  assert_same(decoded.read(source, EVERYTHING), expected)
  forbid_decoding(source, monkeypatch)
  assert_same(decoded.read(source, EVERYTHING), expected)


@pytest.mark.parametrize('overrides', [
    ('--config.data.train_split=train[100:300]',), ('--config.data.image_size=16',)])
def test_other_settings_are_not_served_from_it(tmp_path, digits_dir, cache, overrides):
  one, other = open_train(tmp_path, digits_dir), open_train(tmp_path, digits_dir, *overrides)
  assert_same(decoded.read(one, EVERYTHING), one.read(EVERYTHING))
  assert_same(decoded.read(other, EVERYTHING), other.read(EVERYTHING))
  assert_same(decoded.read(one, EVERYTHING[::-1]), one.read(EVERYTHING[::-1]))
  assert len(list(cache.glob('*.npz'))) == 3


def test_files_that_changed_are_decoded_anew(tmp_path, digits_dir, cache):
  folder = tmp_path / 'tfds'
  shutil.copytree(digits_dir, folder)
  decoded.read(open_train(tmp_path, str(folder)), EVERYTHING)
  for file in folder.rglob('*train*'):
    os.utime(file, ns=(0, 0))
  decoded.read(open_train(tmp_path, str(folder)), EVERYTHING)
  assert len(list(cache.glob('*.npz'))) == 2


@pytest.mark.parametrize('damage', [
    lambda content: content[:len(content) // 2], lambda content: b'',
    lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]])
def test_a_damaged_file_is_written_anew(tmp_path, digits_dir, cache, damage):
  source = open_train(tmp_path, digits_dir)
  expected = decoded.read(source, EVERYTHING)
  [file] = cache.glob('*.npz')
  whole = file.read_bytes()
  file.write_bytes(damage(whole))
  assert_same(decoded.read(source, EVERYTHING), expected)
  assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, digits_dir, cache):
  cache.write_text('a file')
  source = open_train(tmp_path, digits_dir)
  assert_same(decoded.read(source, EVERYTHING), source.read(EVERYTHING))


def test_the_files_that_were_used_last_are_kept(tmp_path, digits_dir, cache):
  source = open_train(tmp_path, digits_dir)
  for start in (0, 1, 2, 3, 0, 4, 5):
    decoded.read(source, EVERYTHING[start:])
  assert sorted(len(np.load(file)['labels']) for file in cache.glob('*.npz')) == [
      195, 196, 197, 200]
  assert not list(cache.glob('.*'))
