"""A folder of image files as a data set: every kind of file, every mistake, its one line."""
import contextlib
import errno
import io
import json
import os
import re
import shutil
import socket

import numpy as np
import PIL.Image
import pytest

from kdih import errors
from kdih.data import datasets, identity, images, loaders, sampling, source, splits
from kdih.data.source import open_split
from kdih.data.spec import DataSpec
from kdih.runtime import digests
from tests.helpers.damage import truncate
from tests.helpers.made_data import CLASSES, examples, make_config, make_folder, message, save

PALETTE = np.array([[200, 10, 30], [0, 90, 255], [7, 7, 7]], np.uint8)


def pixels(seed, height=6, width=6, channels=3):
  return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def folder(tmp_path):
  make_folder(tmp_path / 'my pictures')
  return tmp_path / 'my pictures'


def config_for(root, **fields):
  return make_config(**{'name': 'image_folder', 'folder': str(root),
                        'data_dir': str(root.parent / 'tfds'), **fields})


def opened(config):
  """The data set and its description."""
  folder = datasets.open_builder(config)
  return folder, datasets.describe(folder, config)


def checked(config):
  """The line that refuses a data set, at the latest when its images are checked."""
  return message(lambda: source.open_splits(datasets.open_builder(config), config).check(0.1),
                 kind=errors.DataError)


def read(folder, split='train', **fields):
  """{'SPLIT/CLASS/FILE': (image, label)} of a split."""
  config = config_for(folder, train_split=split, **fields)
  images = datasets.open_builder(config)
  source = open_split(images, 'train_split', config)
  names = [file.name for file in images.files(split)]
  return dict(zip(names, zip(*source.read(np.arange(len(source))), strict=True), strict=True))


@pytest.mark.parametrize('field', ['train_split', 'test_split'])
@pytest.mark.parametrize('loader', ['memory', 'streaming'])
def test_both_loaders_give_every_image_its_label(folder, loader, field):
  written = make_folder(folder)
  config = config_for(folder)
  builder, spec = opened(config)
  assert spec == DataSpec('image_folder', (6, 6, 3), 3, ('Bee', 'ant', 'cow'))
  assert builder.info.features['label'].names == ['Bee', 'ant', 'cow']
  split = config[field]
  names = [file.name for file in builder.files(split)]
  images = open_split(builder, field, config)
  everything = sampling.eval_batches(np.arange(len(images)), len(images))
  batch, = examples(loaders.make_loader(loader, images), everything)
  assert sorted(names) == sorted(name for name in written if name.startswith(split))
  for image, label, name in zip(batch['image'], batch['label'], names, strict=True):
    np.testing.assert_array_equal(image, written[name])
    assert label == sorted(CLASSES).index(name.split('/')[1])
  np.testing.assert_array_equal(images.labels(), batch['label'])


def test_the_order_is_mixed_so_that_a_slice_holds_every_class(folder):
  first = {label for _, label in list(read(folder).values())[:6]}
  assert len(first) > 1
  config = config_for(folder, train_split='train[:75%]', test_split='train[75%:]')
  builder, _ = opened(config)
  assert [len(open_split(builder, f'{part}_split', config)) for part in ('train', 'test')] == [
      9, 3]


def grey16(array):
  return PIL.Image.fromarray(array.astype(np.uint16) * 256 + 17)


def with_palette(array):
  picture = PIL.Image.fromarray(array % 3, mode='P')
  picture.putpalette(PALETTE.tobytes())
  return picture


GREYS = pixels(70, channels=1)[..., 0]
KINDS = {  # Name of the file: how it is saved, what is to be seen in it.
    'grey.png': (GREYS, {}, np.stack([GREYS] * 3, -1)),
    'grey.jpg': (np.full((6, 6), 90, np.uint8), {}, np.full((6, 6, 3), 90)),
    'deep.png': (grey16(GREYS), {}, np.stack([GREYS] * 3, -1)),
    'alpha.PNG': (pixels(71, channels=4), {}, pixels(71, channels=4)[..., :3]),
    'clear.png': (pixels(72), {'transparency': tuple(map(int, pixels(72)[0, 0]))}, pixels(72)),
    'grey-alpha.png': (np.stack([GREYS, GREYS.T], -1), {}, np.stack([GREYS] * 3, -1)),
    'palette.png': (with_palette(GREYS), {}, PALETTE[GREYS % 3]),
    'bits.png': (PIL.Image.fromarray(GREYS > 99), {}, np.stack([(GREYS > 99) * 255] * 3, -1)),
    'cmyk.JPEG': (PIL.Image.new('CMYK', (6, 6)), {}, np.full((6, 6, 3), 255)),
    'gif.jpg': (PIL.Image.new('RGB', (6, 6), 'red'), {'format': 'GIF'},
                np.broadcast_to([255, 0, 0], (6, 6, 3))),
}


@pytest.mark.parametrize('name', KINDS)
def test_every_kind_of_file_becomes_rgb(folder, name):
  picture, options, expected = KINDS[name]
  save(folder / 'train' / 'ant' / name, picture, **options)
  image, label = read(folder)[f'train/ant/{name}']
  assert (image.shape, image.dtype, label) == ((6, 6, 3), np.uint8, 1)
  np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize('orientation, upright', [
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]),
    (4, lambda a: a[::-1]), (5, lambda a: a.swapaxes(0, 1)), (6, lambda a: np.rot90(a, -1)),
    (7, lambda a: a.swapaxes(0, 1)[::-1, ::-1]), (8, np.rot90)])
def test_a_turned_photo_is_put_upright(tmp_path, orientation, upright):
  stored = np.kron(pixels(5, 2, 3), np.ones((16, 16, 1), np.uint8))
  folder = tmp_path / 'photos'
  make_folder(folder, *upright(stored).shape[:2])
  exif = PIL.Image.Exif()
  exif[0x0112] = orientation
  path = save(folder / 'train' / 'ant' / 'photo.jpg', stored, exif=exif, quality=95)
  image, _ = read(folder)['train/ant/photo.jpg']  # Without image_size: the sizes agree, turned.
  np.testing.assert_array_equal(image, upright(np.asarray(PIL.Image.open(path))))


def test_images_of_several_sizes_need_a_size(folder):
  wide = np.kron(pixels(8, 1, 3), np.ones((8, 8, 1), np.uint8))
  save(folder / 'train' / 'ant' / 'wide.png', wide)
  config = config_for(folder)
  found = message(lambda: datasets.describe(datasets.open_builder(config), config))
  assert found == ('config.data.image_size: the images of image_folder differ in size; set the '
                   'side in pixels to resize them to')
  config.image_size = 4
  assert datasets.describe(datasets.open_builder(config), config).image_shape == (4, 4, 3)
  image, _ = read(folder, image_size=4)['train/ant/wide.png']
  np.testing.assert_array_equal(image[1:3, 1:3], wide[2:4, 10:12])  # The middle square.


def test_nothing_is_written_wherever_data_sets_are_kept(folder):
  before = sorted(folder.parent.rglob('*'))
  for data_dir in (folder.parent / 'tfds', 'gs://bucket/tfds'):
    config = config_for(folder, data_dir=str(data_dir))
    assert source.open_splits(datasets.open_builder(config), config).size('train') == 12
  assert sorted(folder.parent.rglob('*')) == before


def test_the_order_is_that_of_generated_tfds_data_sets(folder):
  """It has been so from the first version on: another order would change every slice."""
  config = config_for(folder, train_split='train[:75%]', test_split='test+train[75%:]')
  assert [file.name for file in datasets.open_builder(config).files('train[:75%]')] == [
      f'train/{name}.png' for name in ('cow/2', 'Bee/3', 'cow/3', 'Bee/1', 'ant/0', 'cow/1',
                                       'ant/1', 'ant/3', 'ant/2')]
  splits = source.open_splits(datasets.open_builder(config), config)
  count = splits.size('test')
  assert digests.of_rows(count, splits.sample('test', 64)).startswith(
      '1ba5671f88c986c8a110535a26e0b9ac')


@pytest.mark.parametrize('split, count', [
    ('train[:3]+test', 9), ('test[50%:]+train[-2:]', 5), ('train[2:4]+train[7:]', 7)])
def test_a_slice_holds_its_parts_one_after_the_other(folder, split, count):
  whole = {part: list(read(folder, part)) for part in ('train', 'test')}
  expected = {'train[:3]+test': [*whole['train'][:3], *whole['test']],
              'test[50%:]+train[-2:]': [*whole['test'][3:], *whole['train'][-2:]],
              'train[2:4]+train[7:]': [*whole['train'][2:4], *whole['train'][7:]]}[split]
  assert list(read(folder, split)) == expected and len(expected) == count


def remove(path):
  path.unlink()


def rewrite(path):
  """By another image whose file is as large."""
  content, stat = (path.parent / '1.png').read_bytes(), path.stat()
  assert len(content) == stat.st_size
  path.write_bytes(content)
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize('loader', ['memory', 'streaming'])
@pytest.mark.parametrize('change', [remove, rewrite, truncate])
def test_a_file_that_changes_before_it_is_read_is_named(folder, loader, change):
  config = config_for(folder)
  split = open_split(datasets.open_builder(config), 'train_split', config)
  change(folder / 'train' / 'cow' / '0.png')
  everything = sampling.eval_batches(np.arange(len(split)), len(split))
  found = message(lambda: examples(loaders.make_loader(loader, split), everything),
                  kind=errors.DataError)
  assert found == (f'config.data.folder: {folder}/train/cow/0.png was changed or removed while '
                   'the program was running; run the same command again')
  if change is rewrite:
    np.testing.assert_array_equal(*(read(folder)[f'train/cow/{i}.png'][0] for i in (0, 1)))


def test_a_folder_on_an_object_store_is_refused(folder):
  found = message(datasets.open_builder, config_for(folder, folder='gs://bucket/pictures'))
  assert found == ("config.data.folder: is 'gs://bucket/pictures', and images are read from a "
                   'disk; copy the folder to one, or mount it')


def test_hidden_files_and_other_kinds_and_other_splits_are_left_out(folder):
  for name in ('.DS_Store', 'train/ant/._0.png', 'train/ant/Thumbs.db', 'train/readme.txt',
               'train/.ipynb_checkpoints/0.png', 'unlabelled/0.png'):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('no image')
  assert len(read(folder)) == 12


def test_a_relative_folder_is_found(folder, monkeypatch):
  expected = read(folder)
  monkeypatch.chdir(folder.parent)
  config = config_for(folder, folder='my pictures')
  images, _ = open_split(datasets.open_builder(config), 'train_split', config).read(np.arange(12))
  np.testing.assert_array_equal(images, [image for image, _ in expected.values()])


def rename(old, new):
  return lambda root: (root / old).rename(root / new)


def leave(root):
  del root


def empty(name):
  return lambda root: [path.unlink() for path in (root / name).iterdir()]


def one_level_down(name):
  def change(root):
    (root / name / 'images').mkdir()
    for path in (root / name).glob('*.png'):
      path.rename(path.parent / 'images' / path.name)
  return change


def without_classes(split, count):
  def change(root):
    for label in CLASSES[:count]:
      (root / split / label).rename(root / f'{split} {label}')
  return change


MISTAKES = [
    (rename('train', 'training'), {}, "train_split: 'train' is no folder of {root}, which holds "
     'test, training; images lie in SPLIT/CLASS/, such as train/cat/1.jpg'),
    (rename('test', 'val'), {}, "test_split: 'test' is no folder of {root}, which holds train, va"),
    (lambda root: [(root / f'class {i}').mkdir() for i in range(9)], {'train_split': 'x'},
     "train_split: 'x' is no folder of {root}, which holds "
     f'{", ".join(f"class {i}" for i in range(8))}, ...; images lie in '),
    (leave, {'train_split': 'train+more[:9]'}, "train_split: 'more' is no folder of {root}, which"),
    (leave, {'train_split': 'train/ant'}, "train_split: 'train/ant' is no folder of {root}, which"),
    (leave, {'train_split': ''}, "train_split: '' is no folder of {root}, which holds test, train"),
    (leave, {'folder': ''}, 'folder: is not set; name the folder that holds your images; images '),
    (leave, {'folder': '/no/such'}, 'folder: /no/such is no folder; images lie in SPLIT/CLASS/, s'),
    (leave, {'folder': f'/{"x" * 300}'}, f'folder: /{"x" * 300} cannot be read ([Errno 36] File '),
    (leave, {'folder': '~nobody-of-that-name/x'}, 'folder: ~nobody-of-that-name/x cannot be read '),
    (rename('train/cow', 'train/dog'), {}, 'folder: {root}/test/cow is a class that {root}/train '
     'lacks; add images to train with, or remove it'),
    (rename('test/cow', 'test/Cow '), {}, "folder: {root}/test/Cow  is a class that {root}/train "
     "lacks; 'Cow ' is not 'cow': give them one name"),
    (empty('train/cow'), {}, 'folder: {root}/train/cow holds no image (.jpg, .jpeg, .png); add '
     'some, or remove it; images lie in '),
    (one_level_down('test/ant'), {}, 'folder: {root}/test/ant holds no image (.jpg, .jpeg, .png);'),
    (without_classes('train', 3), {}, 'folder: {root}/train holds no classes; images lie in SPLIT'),
    (without_classes('test', 3), {}, 'folder: {root}/test holds no classes; images lie in SPLIT/C'),
    (without_classes('train', 2), {'test_split': 'train'}, "folder: {root}/train holds one class, "
     "'cow'; at least two are needed; images lie in"),
]


@pytest.mark.parametrize('spoil, fields, expected', MISTAKES)
def test_a_mistake_in_the_layout_is_named(folder, spoil, fields, expected):
  spoil(folder)
  assert message(datasets.open_builder, config_for(folder, **fields)).startswith(
      'config.data.' + expected.format(root=folder))


def test_a_file_that_is_no_image_is_named(folder):
  path = folder / 'train' / 'cow' / '9.jpg'
  path.write_text('<html>404</html>')
  found = message(datasets.open_builder, config_for(folder), kind=errors.DataError)
  assert found == f'config.data.folder: {path} is damaged or no image; replace or remove it'


def test_a_link_to_nothing_is_named(folder):
  path = folder / 'train' / 'cow' / '9.jpg'
  path.symlink_to('/no/such/9.jpg')
  found = message(datasets.open_builder, config_for(folder), kind=errors.DataError)
  assert found == f'config.data.folder: {path} is damaged or no image; replace or remove it'


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_a_file_that_was_cut_off_is_named(folder, suffix):
  path = save(folder / 'test' / 'cow' / f'9.{suffix}', pixels(3))
  path.write_bytes(path.read_bytes()[:-40])
  found = checked(config_for(folder))
  assert found == f'config.data.folder: {path} is damaged or no image; replace or remove it'
  path.unlink()
  assert len(read(folder, 'test')) == 6


def names_in(found, folder):
  """The names of the files that a line names."""
  return re.findall(rf'{re.escape(str(folder))}/(\S+?\.png)', found)


def damage(*names):
  def change(root):
    for name in names:
      path = root / name
      path.write_bytes(path.read_bytes()[:-40] if path.exists() else b'no image')
  return change


SOME = ('test/cow/1.png', 'train/Bee/3.png', 'train/ant/0.png')
MANY = tuple(f'train/cow/x{i}.png' for i in range(10, 23))


@pytest.mark.parametrize('size', [0, 4])
@pytest.mark.parametrize('loader', ['memory', 'streaming'])
@pytest.mark.parametrize('names, named', [(SOME, SOME), (MANY, MANY[:10]), (SOME[:1], SOME[:1])])
def test_all_damaged_images_are_counted_and_ten_are_named(folder, loader, size, names, named):
  damage(*names)(folder)
  found = checked(config_for(folder, loader=loader, image_size=size))
  assert tuple(names_in(found, folder)) == named
  if len(names) > 1:
    assert found.startswith(f'config.data.folder: {len(names)} files are damaged or no image: ')
  assert ', ...; ' in found if len(names) > 10 else ', ...' not in found
  assert found.endswith(f'; replace or remove {"them" if len(names) > 1 else "it"}')


@pytest.mark.parametrize('loader', ['memory', 'streaming'])
def test_damage_in_several_blocks_is_counted(folder, monkeypatch, loader):
  monkeypatch.setattr(splits, '_BLOCK', 1)
  damage(*SOME)(folder)
  assert names_in(checked(config_for(folder, loader=loader, image_size=4)), folder) == list(SOME)


def test_damage_behind_the_headers_is_counted_with_that_to_headers(folder):
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  damage(save(folder / 'test' / 'ant' / 'big.png', noise).relative_to(folder))(folder)
  damage('train/cow/x.png')(folder)
  found = message(datasets.open_builder, config_for(folder), kind=errors.DataError)
  assert names_in(found, folder) == ['test/ant/big.png', 'train/cow/x.png']


@pytest.mark.parametrize('module, name, number', [
    (os, 'stat', errno.EIO), (io, 'open', errno.ESTALE), (io, 'open', errno.EACCES)])
def test_an_image_that_cannot_be_read_now_is_not_called_damaged(
    folder, monkeypatch, module, name, number):
  path, real = folder / 'train' / 'cow' / '0.png', getattr(module, name)

  def fail(asked, *args, **kwargs):
    if str(asked) == str(path):
      raise OSError(number, os.strerror(number), str(path))
    return real(asked, *args, **kwargs)

  monkeypatch.setattr(module, name, fail)
  assert checked(config_for(folder)) == (
      f'config.data.folder: {path} cannot be read ({os.strerror(number)}); make it readable, or '
      'run the same command again')


@pytest.mark.parametrize('size', [0, 4])
def test_where_memory_is_short_no_image_is_called_damaged(folder, monkeypatch, size):
  def fail(_):
    raise MemoryError

  monkeypatch.setattr(images, 'read_size' if size == 0 else 'decode_upright', fail)
  assert re.fullmatch(
      r'config\.data\.folder: .*\.png cannot be read \(Cannot allocate memory\); make it readable, '
      'or run the same command again', checked(config_for(folder, image_size=size)))


def test_an_image_that_is_removed_while_the_headers_are_read_is_not_called_damaged(
    folder, monkeypatch):
  path, read_size = folder / 'train' / 'cow' / '0.png', images.read_size

  def remove_and_read(asked):
    path.unlink(missing_ok=True)
    return read_size(asked)

  monkeypatch.setattr(images, 'read_size', remove_and_read)
  assert message(datasets.open_builder, config_for(folder, loader='streaming'),
                 kind=errors.DataError) == (
      f'config.data.folder: {path} was changed or removed while the program was running; run the '
      'same command again')


def socket_at(path):
  # The path of a socket is at most 107 bytes long.
  with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(path.parent):
    listener.bind(path.name)


@pytest.mark.parametrize('size', [0, 4])
@pytest.mark.parametrize('make', [
    os.mkfifo, os.mkdir, socket_at, lambda path: path.symlink_to('/no/such.png'),
    lambda path: path.symlink_to('/dev/zero'), lambda path: path.symlink_to(path)])
def test_only_files_are_images(folder, make, size):
  path = folder / 'train' / 'cow' / '9.png'
  make(path)
  found = message(datasets.open_builder, config_for(folder, image_size=size),
                  kind=errors.DataError)
  assert found == f'config.data.folder: {path} is damaged or no image; replace or remove it'


def test_a_file_that_would_fill_the_memory_is_named(tmp_path):
  make_folder(tmp_path)
  path = tmp_path / 'train/ant/0.png'
  os.truncate(path, 2**31)  # A hole, which takes no room on the disk.
  config = make_config(name='image_folder', folder=str(tmp_path), image_size=8,
                       train_split='train', test_split='test')
  assert message(datasets.open_builder, config, kind=errors.DataError) == (
      f'config.data.folder: {path} is larger than 512 MiB, the limit for an image file; replace or '
      'remove it')



@pytest.mark.parametrize('size', [0, 4])
def test_of_an_image_that_is_too_large_the_limit_is_said(folder, monkeypatch, size):
  monkeypatch.setattr(PIL.Image, 'MAX_IMAGE_PIXELS', 100)
  path = save(folder / 'train' / 'cow' / 'large.png', pixels(3, 20, 30))
  damage('train/cow/0.png')(folder)
  found = checked(config_for(folder, image_size=size))
  large = f'{path} is larger than 200 pixels, the limit for an image'
  assert found == (f'config.data.folder: {folder}/train/cow/0.png is damaged or no image; {large}; '
                   'replace or remove them')


@pytest.mark.parametrize('name, shown', [
    (b'x\ny', 'x y'), (b'x\ry', 'x y'), (b'x\x1b[31my', 'x\ufffd[31my'), (b'x\xff', 'x\ufffd'),
    (b'x\xc2\x85', 'x '), ('é'.encode(), 'é')])
def test_odd_names_of_classes_and_files_are_read_and_escaped(folder, name, shown):
  for split in ('train', 'test'):
    os.rename(folder / split / 'cow', os.fsencode(folder / split) + b'/' + name)
  odd = os.fsencode(folder) + b'/train/' + name + b'/' + name + b'.png'
  os.rename(os.fsencode(folder) + b'/train/' + name + b'/0.png', odd)
  config = config_for(folder)
  builder, spec = opened(config)
  assert spec.classes == ('Bee', 'ant', shown)
  splits = source.open_splits(builder, config)
  assert splits.classes == spec.classes
  found = identity.identify(builder, config, splits)
  assert json.dumps(found, ensure_ascii=False).encode() and found['classes'][2] == shown
  with open(odd, 'wb') as file:
    file.write(b'no image')
  assert f'/{shown}/{shown}.png is damaged' in message(datasets.open_builder, config)


@pytest.mark.parametrize('other', ['ANT', 'ant ', ' Ant'])
def test_classes_whose_names_are_nearly_the_same_are_said(folder, caplog, other):
  for split in ('train', 'test'):
    shutil.copytree(folder / split / 'ant', folder / split / other)
  config = config_for(folder)
  builder, spec = opened(config)
  assert {'ant', other} < set(spec.classes)
  source.open_splits(builder, config).check(0)
  line, = (text for text in caplog.messages if 'differ' in text)
  first, second = sorted(['ant', other])
  assert line == (f'data: the classes {first!r} and {second!r} differ only in case, blanks or the '
                  'form of a letter; if they are one class, give it one name')


def test_a_letter_in_two_forms_is_said(folder, caplog):
  for split in ('train', 'test'):
    (folder / split / 'ant').rename(folder / split / '\xe9')
    (folder / split / 'cow').rename(folder / split / 'e\u0301')
  config = config_for(folder)
  source.open_splits(opened(config)[0], config).check(0)
  assert "the classes 'e\\u0301' and '\\xe9' differ only in" in caplog.text
