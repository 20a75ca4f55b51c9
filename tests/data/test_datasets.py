"""Data sets that cannot be prepared: one line with the reason and what to do, at once."""
import concurrent.futures
import pathlib
import shutil
import time

import pytest
import tensorflow_datasets as tfds

from kdih import errors
from kdih.data import datasets, source
from kdih.data.spec import DataSpec
from tests.helpers.damage import truncate
from tests.helpers.made_data import CLASSES, Small, make_config, message


def test_data_that_cannot_be_downloaded_are_described_but_refused_at_once(tmp_path, monkeypatch):
  config = make_config(name='cifar10', data_dir=str(tmp_path))
  builder = datasets.open_builder(config)
  assert datasets.describe(builder, config) == DataSpec('cifar10', (32, 32, 3), 10)
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  monkeypatch.setattr(type(builder), 'url_infos', {
      'http://127.0.0.1:9/x': tfds.core.download.checksums.UrlInfo(1, '0', 'x.zip')})
  started = time.monotonic()
  found = message(datasets.prepare, builder, kind=errors.DataError)
  assert time.monotonic() - started < 10
  assert found.startswith(f'config.data.name: cifar10:3.0.2 is not prepared in {tmp_path} and '
                          f'http://127.0.0.1:9/x does not answer; put x.zip into {tmp_path}'
                          '/downloads/manual, or prepare it where there is a network with ')
  assert 'tfds.builder("cifar10:3.0.2", data_dir=' in found and 'download_and_prepare()' in found


@pytest.mark.parametrize('given, known', [
    (['cat', 'ant', 'bee'], ('cat', 'ant', 'bee')), (['0', '1', '3'], ('0', '1', '3')), (None, ())])
def test_names_of_classes_are_known_where_the_data_set_has_some(tmp_path, given, known):
  builder = Small(data_dir=str(tmp_path))
  if given:
    builder.info.features['label'].names = given
  assert datasets.describe(builder, make_config(name='small')).classes == known


@pytest.mark.slow
def test_names_that_are_known_once_data_are_prepared_are_those_of_the_splits(
    tmp_path, monkeypatch):
  generators = Small._split_generators

  def named(self, manager):
    self.info.features['label'].names = CLASSES
    return generators(self, manager)

  monkeypatch.setattr(Small, '_split_generators', named)
  builder, config = Small(data_dir=str(tmp_path)), make_config(name='small')
  assert datasets.describe(builder, config).classes == ()
  assert source.open_splits(builder, config).classes == CLASSES


def test_data_that_cannot_be_prepared_are_refused_with_the_reason(tmp_path, monkeypatch):
  monkeypatch.setattr(Small, '_generate_examples', lambda *_: 1 / 0)
  found = message(datasets.prepare, Small(data_dir=str(tmp_path)), kind=errors.DataError)
  assert found == ('config.data.name: TFDS could not prepare small:1.0.0 (division by zero); '
                   f'to write it to another folder than {tmp_path}, set config.data.data_dir')


def test_of_several_that_prepare_at_once_one_does_and_all_can_read(tmp_path, monkeypatch):
  generators, times = Small._split_generators, []

  def counted(self, manager):
    times.append(1)
    time.sleep(0.5)
    return generators(self, manager)

  monkeypatch.setattr(Small, '_split_generators', counted)
  builders = [Small(data_dir=str(tmp_path)) for _ in range(3)]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    prepared = list(pool.map(datasets.prepare, builders))
  assert len(times) == 1
  assert [builder.info.splits['train'].num_examples for builder in prepared] == [40] * 3


@pytest.mark.parametrize('name', ['features.json', 'dataset_info.json'])
def test_a_description_that_was_damaged_since_it_was_looked_for_is_named(tmp_path, name):
  early = Small(data_dir=str(tmp_path))
  Small(data_dir=str(tmp_path)).download_and_prepare(file_format='array_record')
  truncate(pathlib.Path(early.data_path / name))
  found = message(source.open_splits, early, make_config(name='small'), kind=errors.DataError)
  assert found.startswith('config.data.name: the description of the data set in '
                          f'{early.data_dir} is damaged (')


@pytest.mark.parametrize('lines, expected', [
    ('ant\nbee\nfly\ncow\n', 4), ('ant\rbee\nfly\ncow\n', 4), ('ant\ncow\n', 2), ('', 3)])
def test_as_many_names_as_classes_are_read(small, tmp_path, lines, expected):
  folder = shutil.copytree(small().data_dir, tmp_path / 'tfds')
  pathlib.Path(folder, 'small/1.0.0/label.labels.txt').write_text(lines)
  config = make_config(name='small', data_dir=str(folder))
  if expected == 3:
    assert datasets.describe(datasets.open_builder(config), config).classes == ()
  else:
    found = message(lambda: datasets.describe(datasets.open_builder(config), config),
                    kind=errors.DataError)
    assert found == (f'config.data.label_key: the file label.labels.txt of small has {expected} '
                     'lines for 3 classes; give each class one line')


def test_names_of_classes_are_escaped(small, tmp_path):
  folder = shutil.copytree(small().data_dir, tmp_path / 'tfds')
  pathlib.Path(folder, 'small/1.0.0/label.labels.txt').write_text('a\x1b[2J\nb\u2028c\nd\n')
  config = make_config(name='small', data_dir=str(folder))
  found = datasets.describe(datasets.open_builder(config), config).classes
  assert found == ('a\ufffd[2J', 'b c', 'd')


def test_what_a_killed_process_has_left_is_removed_when_data_are_prepared(tmp_path):
  builder = Small(data_dir=str(tmp_path))
  left = tmp_path / 'small' / 'incomplete.ABC123_1.0.0'
  other = tmp_path / 'small' / 'incomplete.ABC123_2.0.0'
  for folder in (left, other):
    folder.mkdir(parents=True)
    (folder / 'half').write_bytes(b'x')
  datasets.prepare(builder)
  assert (tmp_path / 'small' / '1.0.0' / 'dataset_info.json').exists()
  assert not left.exists() and other.exists()


def test_more_classes_than_have_room_for_names_are_refused(small, tmp_path):
  folder = pathlib.Path(shutil.copytree(small('array_record').data_dir, tmp_path / 'tfds'))
  path, = folder.rglob('features.json')
  path.write_text(path.read_text().replace('"numClasses": "3"', '"numClasses": "3000000000"'))
  config = make_config(name='small', data_dir=str(folder))
  assert message(lambda: datasets.describe(datasets.open_builder(config), config)) == (
      "config.data.label_key: 'label' of small has 3,000,000,000 classes; at most 1,000,000 are "
      'possible; choose another feature')
