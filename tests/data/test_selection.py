"""Splits that share images, or hold one twice, are refused before anything is read."""
import numpy as np
import pytest
import tensorflow_datasets as tfds

from kdih.data import datasets, selection, sizes, source
from kdih.sweep import __main__ as sweep
from tests.helpers.made_data import make_config, make_folder, message
from tests.helpers.runs import tiny_command

INFOS = {name: tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=0)
         for name, lengths in (('train', [30, 10]), ('test', [20]))}
REMEDY = '; choose splits that share none, such as train[:90%] and train[90%:]'


def check(train, test):
  selection.check(INFOS, make_config(train_split=train, test_split=test))


@pytest.mark.parametrize('split, expected', [
    ('train', {'train': range(40), 'test': ()}),
    ('train[-25%:]+test[:2]', {'train': range(30, 40), 'test': range(2)}),
    ('train[:5]+train[35:]', {'train': [*range(5), *range(35, 40)], 'test': ()}),
    ('all', {'train': range(40), 'test': range(20)})])
def test_what_a_split_selects(split, expected):
  config = make_config(train_split=split)
  selected = selection.select(INFOS, 'train_split', config)
  assert {name: list(np.flatnonzero(chosen)) for name, chosen in selected.items()} == {
      name: list(indices) for name, indices in expected.items()}
  assert selection.parts(INFOS, 'train_split', config) == {
      name for name, indices in expected.items() if indices}
  assert selection.size(INFOS, 'train_split', config) == sum(map(len, expected.values()))


@pytest.mark.parametrize('train, test', [
    ('train', 'test'), ('train[:90%]', 'train[90%:]'), ('train[10:]', 'test+train[:10]'),
    ('train[:5]+train[10:]', 'train[5:10]'), ('train+test[:50%]', 'test[50%:]')])
def test_splits_that_share_nothing_are_taken(train, test):
  check(train, test)
  check(test, train)


@pytest.mark.parametrize('train, test, shared', [
    ('train', 'train', '40 images'), ('train', 'train[50%:]', '20 images'),
    ('train[:20]+test[:20]', 'test', '20 images'), ('train[:21]', 'train[20:]', '1 image'),
    ('train[:10]+train[20:30]', 'test+train[5:25]', '10 images'), ('all', 'test', '20 images'),
    ('train', 'all', '40 images'), ('train[:-5]', 'train[-10:]', '5 images')])
def test_splits_that_share_images_are_refused(train, test, shared):
  assert message(check, train, test) == (
      f'config.data.test_split: {test!r} has {shared} in common with config.data.train_split '
      f'{train!r}{REMEDY}')
  assert message(check, test, train).startswith(
      f'config.data.test_split: {train!r} has {shared} in common with config.data.train_split ')


@pytest.mark.parametrize('split, repeated', [
    ('train+train', '40 images'), ('train[:20]+train[19:]', '1 image'),
    ('train[:10]+train[5:15]+train[8:]', '10 images'), ('train+train+train', '40 images')])
def test_a_split_that_holds_an_image_twice_is_refused(split, repeated):
  expected = (f'{split!r} holds {repeated} more than once; name each part once, such as '
              'train[:50%]+train[60%:]')
  assert message(check, split, 'test') == f'config.data.train_split: {expected}'
  assert message(check, 'test', split) == f'config.data.test_split: {expected}'


def test_nothing_is_read_of_splits_that_share_images(small, monkeypatch):
  monkeypatch.setattr(source, 'open_split', None)
  config = small(train_split='train[:30]', test_split='train[29:]')
  found = message(source.open_splits, datasets.open_builder(config), config)
  assert found.startswith("config.data.test_split: 'train[29:]' has 1 image in common")


@pytest.mark.parametrize('name, test, shared', [
    ('cifar100', 'train[50%:]', '25,000 images'), ('image_folder', 'train[10:]', '2 images')])
@pytest.mark.parametrize('call', [sizes.known, source.open_splits])
def test_splits_that_share_images_are_refused_before_they_are_prepared(
    tmp_path, call, name, test, shared):
  make_folder(tmp_path / 'pictures')
  folder = str(tmp_path / 'pictures') if name == 'image_folder' else ''
  config = make_config(name=name, folder=folder, data_dir=str(tmp_path / 'tfds'), test_split=test)
  assert f'{test!r} has {shared} in common' in message(call, datasets.open_builder(config), config)
  assert not (tmp_path / 'tfds').exists()


def test_images_of_a_folder_are_counted(tmp_path):
  make_folder(tmp_path / 'pictures')
  config = make_config(name='image_folder', folder=str(tmp_path / 'pictures'),
                       data_dir=str(tmp_path / 'tfds'), validation_fraction=0.25)
  counted = sizes.known(datasets.open_builder(config), config)
  assert counted == {'train': 9, 'validation': 3, 'test': 6}


def test_a_dry_run_refuses_splits_that_share_images(tmp_path, capsys):
  assert sweep.main(tiny_command(tmp_path / 'w', tmp_path / 'none', '--dry_run', '--methods=ce',
                                 '--config.data.test_split=train[100:]')) == 2
  error = capsys.readouterr().err
  assert error.startswith("kdih: config.data.test_split: 'train[100:]' has 100 images in common ")
  assert error.count('\n') == 1 and not list(tmp_path.iterdir())
