"""The identity of a data set: the same after a move, and a line for every change."""
import json
import os
import shutil

import numpy as np
import pytest

from kdih.data import changes as changes_lib, datasets, identity, source
from tests.helpers.made_data import CLASSES, FORMATS, Small, make_config, make_folder, pixels, save


def identify(config):
  builder = datasets.open_builder(config)
  found = identity.identify(builder, config, source.open_splits(builder, config))
  assert json.loads(json.dumps(found)) == found
  return found


@pytest.fixture
def folder(tmp_path):
  make_folder(tmp_path / 'pictures')
  return tmp_path / 'pictures'


def of_folder(root, **fields):
  return identify(make_config(**{'name': 'image_folder', 'folder': str(root),
                                 'data_dir': str(root.parent / 'tfds'), **fields}))


def changes(folder, change, **fields):
  """Returns the `differences` after `change(folder)`."""
  before = of_folder(folder, **fields)
  change(folder)
  return changes_lib.differences(before, of_folder(folder, **fields))


def test_a_folder_is_counted_and_its_classes_are_named(folder):
  found = of_folder(folder, train_split='train[:75%]')
  assert found['classes'] == sorted(CLASSES)
  assert {split: part['images'] for split, part in found['splits'].items()} == {
      'train': 9, 'test': 6}
  digests = [part[key] for part in found['splits'].values() for key in ('names', 'pixels')]
  assert len(set(digests)) == 4 and all(len(digest) == 64 for digest in digests)


@pytest.mark.parametrize('place', [
    lambda folder, other: folder.rename(other),
    lambda folder, other: shutil.copytree(folder, other)])
def test_a_folder_that_was_moved_or_copied_is_the_same(folder, tmp_path, place):
  before = of_folder(folder)
  other = tmp_path / 'elsewhere' / 'renamed'
  other.parent.mkdir()
  place(folder, other)
  for path in other.rglob('*'):
    os.utime(path, ns=(0, 0))
  assert of_folder(other) == before


def rename(folder):
  for split in ('train', 'test'):
    (folder / split / 'ant').rename(folder / split / 'zebra')


def add_class(folder):
  save(folder / 'train' / 'dog' / '0.png', pixels(90, 6, 6, 3))


def remove_class(folder):
  for split in ('train', 'test'):
    shutil.rmtree(folder / split / 'Bee')


def add(folder):
  for i in range(2):
    save(folder / 'train' / 'ant' / f'new{i}.png', pixels(90 + i, 6, 6, 3))


def remove(folder):
  (folder / 'test' / 'cow' / '1.png').unlink()


def both(folder):
  add(folder)
  remove(folder)


def replace(folder):
  save(folder / 'train' / 'ant' / '0.png', np.zeros((6, 6, 3), np.uint8))


def replace_pixels(folder):
  """By those of a file of the same size."""
  one, other = (folder / 'test' / label / '0.png' for label in ('ant', 'cow'))
  content = other.read_bytes()
  assert one.stat().st_size == len(content) and one.read_bytes() != content
  one.write_bytes(content)
  os.utime(one, ns=(0, 0))


@pytest.mark.parametrize('change, expected', [
    (rename, ["the class 'zebra' is new", "the class 'ant' is gone"]),
    (add_class, ["the class 'dog' is new", '1 image of train was added']),
    (remove_class, ["the class 'Bee' is gone", '4 images of train are gone',
                    '2 images of test are gone']),
    (add, ['2 images of train were added']), (remove, ['1 image of test is gone']),
    (both, ['2 images of train were added', '1 image of test is gone']),
    (replace, ['images of train were replaced (other names or sizes)']),
    (replace_pixels, ['the pixels of test have changed']),
    (lambda folder: (folder / 'readme.txt').write_text('x'), []),
    (lambda folder: save(folder / 'more' / 'ant' / '0.png', pixels(9, 6, 6, 3)), [])])
def test_what_changes_in_a_folder_is_a_line(folder, change, expected):
  assert changes(folder, change) == expected


def test_another_file_of_a_folder_that_a_slice_is_cut_from_is_a_change(folder):
  assert changes(folder, add, train_split='train[:9]') == [
      'images of train were replaced (other names or sizes)']


def test_images_that_are_resized_otherwise_are_other_pixels(folder):
  assert changes_lib.differences(of_folder(folder), of_folder(folder, image_size=4)) == [
      'the pixels of train have changed', 'the pixels of test have changed']


def test_a_tfds_set_is_the_same_in_every_file_format_and_number_of_shards(small, tmp_path):
  found = [identify(small(file_format)) for file_format in FORMATS]
  copy = shutil.copytree(small().data_dir, tmp_path / 'copy')
  assert found[0] == found[1] == identify(small(data_dir=str(copy)))
  assert found[0]['classes'] is None
  assert found[0]['splits']['train']['images'] == 40


def test_another_slice_of_a_tfds_set_has_other_pixels_and_another_part_other_names(small):
  found = [identify(small(train_split=train, test_split=test)) for train, test in (
      ('train[:7]', 'train[20:]'), ('train[7:14]', 'train[20:]'), ('test', 'train[20:]'))]
  assert changes_lib.differences(found[0], found[1]) == ['the pixels of train have changed']
  assert changes_lib.differences(found[1], found[2]) == [
      'images of train were replaced (other names or sizes)']


def test_every_image_of_a_few_counts_and_an_even_choice_of_many(small, monkeypatch):
  read = []
  monkeypatch.setattr(source.Source, '_read', lambda self, index: (
      read.append(index), (np.zeros(self.spec.image_shape, np.uint8), 0))[1])
  identify(small(train_split='train[5:]'))
  assert read == [*range(35), *range(7)]
  read.clear()
  monkeypatch.setattr(identity, '_SAMPLE', 4)
  identify(small())
  assert read == [0, 13, 26, 39, 0, 2, 4, 6]


def made(classes=None, **train):
  return {'classes': classes, 'splits': {'train': train}}


@pytest.mark.parametrize('before, now, expected', [
    (made(['ant', 'cat', 'dog']), made(['ant', 'dog', 'cat']),
     ["the classes are in another order: 'cat' is number 2 now and was 1"]),
    (made(['cat', 'dog'], names='a', pixels='a'), made(['dog', 'cat'], names='b', pixels='b'),
     ["the classes are in another order: 'cat' is number 1 now and was 0"]),
    (made(['a', 'b', 'c', 'd']), made(['e', 'f']), [
        "the classes 'e', 'f' are new", "the classes 'a', 'b', 'c' and 1 more are gone"]),
    (made(images=9000), made(images=10500), ['1,500 images of train were added']),
    (made(images=5, names='a', pixels='a'), made(images=4, names='b', pixels='b'),
     ['1 image of train is gone']),
    # What only one of them knows is not compared.
    (made(['cat', 'dog']), made(), []), (made(), made(['cat', 'dog']), []),
    (made(), made(images=5, names='a', pixels='a'), []), ({}, made(['cat'], images=5), []),
    (made(images=5, names='a'), made(images=5, names='a', pixels='b'), []),
    (made(pixels='a'), made(pixels='b'), ['the pixels of train have changed'])])
def test_differences(before, now, expected):
  assert changes_lib.differences(before, now) == expected
  assert changes_lib.differences(now, now) == []


def test_a_builder_made_before_another_process_prepared_the_data_set_will_do(small, tmp_path):
  early = Small(data_dir=str(tmp_path))
  config = small(data_dir=str(tmp_path))
  Small(data_dir=str(tmp_path)).download_and_prepare(file_format='array_record')
  splits = source.open_splits(early, config)
  assert identity.identify(early, config, splits) == identify(small())
