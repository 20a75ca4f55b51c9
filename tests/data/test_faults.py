"""Data sets that are damaged, odd or small: a line at the start, or handled as documented."""
import os
import re
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from kdih import errors, main
from kdih.data import datasets, sampling, source as source_lib
from kdih.data.splits import Splits
from tests.helpers.damage import empty, flip_a_bit, truncate
from tests.helpers.made_data import FORMATS, examples, make_config, make_folder, message, pixels
from tests.helpers.runs import read_config, tiny_command
from tests.helpers.slow import slow
from tests.helpers.started import assert_bit_identical

LOADERS = ('memory', 'streaming')

with tfds.core.registered.skip_registration():
  class Odd(tfds.core.GeneratorBasedBuilder):
    """Images and labels of every kind that does not serve, and files of other kinds that do."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      image = tfds.features.Image
      return tfds.core.DatasetInfo(
          builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict({
              'image': image(shape=(6, 6, 3)), 'files': image(shape=(None, None, 3)),
              'grey': image(shape=(6, 6, 1)), 'alpha': image(shape=(6, 6, 4)),
              'float': image(shape=(6, 6, 1), dtype=np.float32),
              'deep': image(shape=(6, 6, 1), dtype=np.uint16),
              'label': tfds.features.ClassLabel(num_classes=3),
              'sorted': tfds.features.ClassLabel(num_classes=3),
              'partly': tfds.features.ClassLabel(num_classes=3),
              'one': tfds.features.ClassLabel(num_classes=1)}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(40), 'test': self._generate_examples(10)}

    def _generate_examples(self, count):
      folder = self.data_dir_root
      for i in range(count):
        yield i, {'image': pixels(i, 6, 6, 3), 'files': str(folder / KINDS[i % len(KINDS)][0]),
                  'grey': pixels(i, 6, 6, 1), 'alpha': pixels(i, 6, 6, 4),
                  'float': np.full((6, 6, 1), np.nan, np.float32),
                  'deep': np.zeros((6, 6, 1), np.uint16), 'label': i % 3, 'one': 0,
                  'sorted': i // 20, 'partly': -1 if i == 33 else i % 3}

GREY = pixels(1, 6, 6)
INDICES = PIL.Image.fromarray(GREY % 2, mode='P')
INDICES.putpalette([9, 8, 7, 200, 100, 0])
KINDS = [  # A file, its picture, and what is to be seen in it.
    ('grey.png', PIL.Image.fromarray(GREY), np.stack([GREY] * 3, -1)),
    ('alpha.png', PIL.Image.fromarray(pixels(2, 6, 6, 4)), pixels(2, 6, 6, 4)[..., :3]),
    ('palette.png', INDICES, np.array([[9, 8, 7], [200, 100, 0]], np.uint8)[GREY % 2]),
    ('cmyk.jpg', PIL.Image.new('CMYK', (6, 6)), np.full((6, 6, 3), 255)),
    ('colour.png', PIL.Image.fromarray(pixels(3, 6, 6, 3)), pixels(3, 6, 6, 3))]


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
  """A function that makes configs of Odd, which is prepared."""
  folder = tmp_path_factory.mktemp('odd')
  for name, picture, _ in KINDS:
    picture.save(folder / name)
  Odd(data_dir=str(folder)).download_and_prepare(file_format='array_record')
  return lambda **fields: make_config(**{'name': 'odd', 'data_dir': str(folder), **fields})


def opened(config):
  """The two splits, checked as before a run."""
  builder = datasets.open_builder(config)
  datasets.describe(builder, config)
  builder = datasets.prepare(builder)
  splits = Splits({split: source_lib.open_split(builder, f'{split}_split', config)
                   for split in ('train', 'test')}, config.loader)
  splits.check(0.1)
  return splits


@pytest.mark.parametrize('loader', LOADERS)
def test_files_of_every_kind_have_the_channels_of_their_feature(odd, loader):
  splits = opened(odd(image_key='files', image_size=6, loader=loader))
  batch, = examples(splits.loader('test'), sampling.eval_batches(np.arange(10), 10))
  for image, (_, _, expected) in zip(batch['image'], KINDS * 2, strict=True):
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize('key, channels', [('grey', 1), ('alpha', 4)])
def test_grey_images_and_those_with_alpha_stay_as_they_are(odd, key, channels):
  source = source_lib.open_split(datasets.open_builder(odd()), 'train_split', odd(image_key=key))
  images, _ = source.read(np.arange(3))
  np.testing.assert_array_equal(images, [pixels(i, 6, 6, channels) for i in range(3)])


@pytest.mark.parametrize('loader', LOADERS)
@pytest.mark.parametrize('fields, expected', [
    ({'image_key': 'float'}, 'image_key: the images of odd are of float32; uint8 is needed, 0'),
    ({'image_key': 'deep'}, 'image_key: the images of odd are of uint16; uint8 is needed, 0 '),
    ({'label_key': 'one'}, "label_key: 'one' of odd has 1 classes; at least two are needed;"),
    ({'label_key': 'partly'}, 'label_key: odd has a label outside 0 to 2; choose a split with l'),
    ({'label_key': 'sorted', 'train_split': 'train[:20]'},
     'train_split: all 20 images are of one class, number 0; at least two are needed; choose')])
def test_what_does_not_serve_is_refused_at_the_start(odd, loader, fields, expected):
  assert message(opened, odd(loader=loader, **fields)).startswith(f'config.data.{expected}')


@pytest.mark.parametrize('loader', LOADERS)
def test_a_class_without_an_image_in_the_split_is_allowed(odd, loader):
  splits = opened(odd(label_key='sorted', loader=loader))
  assert set(splits.labels('train')) == {0, 1}


@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize('damage', [
    flip_a_bit, *(slow(damage)
                  for damage in (truncate, empty, os.remove))])
def test_no_file_of_a_prepared_set_is_taken_for_a_good_one(
    small, tmp_path, file_format, damage):  # noqa: F811
  """Whichever is damaged: what is read is what was written, or one line names the folder."""
  whole = small(file_format).data_dir
  expected, refused = everything(small(file_format)), []
  for path in sorted(datasets.open_builder(small(file_format)).data_path.iterdir()):
    copy = tmp_path / 'copy'
    shutil.copytree(whole, copy)
    damage_content(copy / path.relative_to(whole), damage)
    before = {p: p.read_bytes() for p in copy.rglob('*') if p.is_file()}
    config = small(file_format, data_dir=str(copy))
    try:
      assert everything(config) == expected
    except errors.ConfigError as error:
      assert '\n' not in str(error) and re.match('config.data.name: ', str(error))
      refused.append(path.name)
    assert {p: p.read_bytes() for p in copy.rglob('*') if p.is_file()} == before
    shutil.rmtree(copy)
  assert len([name for name in refused if name.startswith(('small-train', 'small-test'))]) == 6


def damage_content(path, damage):
  """array_record files end in zeros, which nobody reads: a bit is flipped before them."""
  content = path.read_bytes()
  damage(path)
  if damage is flip_a_bit:
    changed = bytearray(content)
    changed[len(content.rstrip(b'\0')) // 8 * 7 if path.suffix == '.json' else
            len(content.rstrip(b'\0')) - 40] ^= 16
    path.write_bytes(changed)


def everything(config):
  splits = {}
  for split in ('train', 'test'):
    builder = datasets.prepare(datasets.open_builder(config))
    source = source_lib.open_split(builder, f'{split}_split', config)
    splits[split] = [array.tobytes() for array in source.read(np.arange(len(source)))]
  return splits


@pytest.mark.parametrize('loader', LOADERS)
def test_damaged_data_end_the_run_in_one_line_before_anything_is_written(
    tmp_path, digits_dir, capsys, loader):
  folder = copy_of(digits_dir, tmp_path)
  damage_content(shard(folder), empty)
  command = tiny_command(tmp_path / 'w', str(folder), f'--config.data.loader={loader}')
  assert main.main(command) == 2
  *before, last = capsys.readouterr().err.splitlines()
  assert last.startswith('kdih: config.data.name: ') and 'is damaged (' in last
  assert all(line.startswith('data: ') for line in before)
  assert not (tmp_path / 'w').exists()


def copy_of(digits_dir, tmp_path):
  return shutil.copytree(digits_dir, tmp_path / 'tfds')


def shard(folder):
  path, = folder.rglob('digits-train.array_record*')
  return path


@pytest.mark.slow
def test_damage_found_while_streaming_loses_nothing(tmp_path, digits_dir, capsys, monkeypatch):
  """The run ends in one line; with the data put back the same command ends with the same bits."""
  folder, whole = copy_of(digits_dir, tmp_path), tmp_path / 'whole'
  options = ('--config.data.loader=streaming', '--config.phases=teacher')
  monkeypatch.setattr('kdih.data.splits._LOOKED_AT', 3)
  assert main.main(tiny_command(whole, str(folder), *options)) == 0
  read, calls = source_lib.Source._record, []

  def damaged_later(self, index):
    calls.append(index)
    if len(calls) == 350:
      shard(folder).write_bytes(bytes(shard(folder).stat().st_size))
    return read(self, index)

  monkeypatch.setattr(source_lib.Source, '_record', damaged_later)
  assert main.main(tiny_command(tmp_path / 'w', str(folder), *options)) == 2
  assert 'is damaged (' in capsys.readouterr().err.splitlines()[-1]
  monkeypatch.undo()
  shutil.rmtree(folder)
  copy_of(digits_dir, tmp_path)
  assert not (tmp_path / 'w' / 'teacher' / 'result.json').exists()
  assert main.main(tiny_command(tmp_path / 'w', str(folder), *options)) == 0
  assert_bit_identical(tmp_path / 'w', whole, ('teacher',))


@pytest.mark.slow
@pytest.mark.parametrize('loader', LOADERS)
def test_fewer_images_than_a_batch_and_than_devices_are_enough(tmp_path, digits_dir, loader):
  """A batch is filled up from the next epoch; each image to evaluate with counts once."""
  config = read_config(
      tmp_path, digits_dir, '--config.phases=teacher', f'--config.data.loader={loader}',
      '--config.data.train_split=train[:10]', '--config.data.test_split=test[:1]',
      '--config.data.validation_fraction=0.1', '--config.teacher.train.length=2',
      '--config.teacher.train.milestones=1')
  found = main.run(config, tmp_path)['teacher']
  assert found['steps'] == 2
  assert {found[split]['top1'] for split in ('val', 'test_last', 'test_best_val')} <= {0.0, 1.0}


@pytest.mark.parametrize('spoil, expected', [
    (lambda folder: (folder / 'train/ant/0.png').write_bytes(b''), '0.png is damaged or no image'),
    (lambda folder: truncate(folder / 'test/cow/1.png'), '1.png is damaged or no image; replace'),
    (lambda folder: [path.unlink() for path in (folder / 'train/ant').iterdir()],
     'train/ant holds no image')])
def test_a_folder_of_images_with_a_fault_writes_nothing(tmp_path, capsys, spoil, expected):
  make_folder(tmp_path / 'pictures')
  spoil(tmp_path / 'pictures')
  assert main.main(tiny_command(
      tmp_path / 'w', str(tmp_path / 'tfds'), '--config.data.name=image_folder',
      f'--config.data.folder={tmp_path}/pictures', '--config.data.train_split=train',
      '--config.data.test_split=test')) == 2
  assert expected in capsys.readouterr().err.splitlines()[-1]
  assert not (tmp_path / 'w').exists()
