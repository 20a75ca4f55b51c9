"""A folder of image files as a data set: every kind of file, every mistake, its one line."""
import os

import numpy as np
import PIL.Image
import pytest

from kdih import errors
from kdih.data import datasets, loaders, sampling
from kdih.data.source import open_split
from kdih.data.spec import DataSpec
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


def prepared(config):
  builder = datasets.open_builder(config)
  spec = datasets.describe(builder, config)
  datasets.prepare(builder)
  return builder, spec


def read(folder, split='train', **fields):
  """{file: (image, label)} of a split."""
  config = config_for(folder, train_split=split, **fields)
  builder, _ = prepared(config)
  images, labels = open_split(builder, 'train_split', config).read(
      np.arange(builder.info.splits[split].num_examples))
  names = [e['file'].decode() for e in builder.as_data_source(split=split)]
  return {name: (image, label) for name, image, label in zip(names, images, labels, strict=True)}


def prepared_copies(folder):
  return sorted(path.name for path in (folder.parent / 'tfds' / 'image_folder').iterdir())


@pytest.mark.parametrize('field', ['train_split', 'test_split'])
@pytest.mark.parametrize('loader', ['memory', 'streaming'])
def test_both_loaders_give_every_image_its_label(folder, loader, field):
  written = make_folder(folder)
  config = config_for(folder)
  builder, spec = prepared(config)
  assert spec == DataSpec('image_folder', (6, 6, 3), 3, ('Bee', 'ant', 'cow'))
  assert builder.info.features['label'].names == ['Bee', 'ant', 'cow']
  split = config[field]
  names = [e['file'].decode() for e in builder.as_data_source(split=split)]
  source = open_split(builder, field, config)
  everything = sampling.eval_batches(np.arange(len(source)), len(source))
  batch, = examples(loaders.make_loader(loader, source), everything)
  assert sorted(f'{split}/{name}' for name in names) == sorted(
      name for name in written if name.startswith(split))
  for image, label, name in zip(batch['image'], batch['label'], names, strict=True):
    np.testing.assert_array_equal(image, written[f'{split}/{name}'])
    assert label == sorted(CLASSES).index(name.split('/')[0])
  np.testing.assert_array_equal(source.labels(), batch['label'])


def test_the_order_is_mixed_so_that_a_slice_holds_every_class(folder):
  first = {label for _, label in list(read(folder).values())[:6]}
  assert len(first) > 1
  config = config_for(folder, train_split='train[:75%]', test_split='train[75%:]')
  builder, _ = prepared(config)
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
  image, label = read(folder)[f'ant/{name}']
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
  image, _ = read(folder)['ant/photo.jpg']  # Without image_size: the sizes agree, once turned.
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
  image, _ = read(folder, image_size=4)['ant/wide.png']
  np.testing.assert_array_equal(image[1:3, 1:3], wide[2:4, 10:12])  # The middle square.
  assert message(prepared, config_for(folder)) == found  # From the prepared copy, too.


def test_nothing_is_written_before_the_data_set_is_prepared(folder):
  config = config_for(folder)
  datasets.describe(datasets.open_builder(config), config)
  assert not (folder.parent / 'tfds').exists()


def test_a_prepared_copy_is_used_until_a_file_changes(folder, tmp_path, monkeypatch):
  read(folder)
  path = folder / 'train' / 'ant' / '0.png'
  before, kept = path.stat(), prepared_copies(folder)
  assert len(kept) == 1 and kept[0].startswith('my_pictures-')
  monkeypatch.setattr('kdih.data.images.to_rgb', None)
  assert len(read(folder)) == 12 and prepared_copies(folder) == kept
  monkeypatch.undo()

  content = path.read_bytes()
  path.write_bytes((folder / 'train' / 'cow' / '0.png').read_bytes())
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
  image, _ = read(folder)['ant/0.png']
  np.testing.assert_array_equal(image, read(folder)['cow/0.png'][0])
  assert len(prepared_copies(folder)) == 2
  path.write_bytes(content)
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert not np.array_equal(read(folder)['ant/0.png'][0], image)
  assert len(prepared_copies(folder)) == 2  # The first one again.


def test_equal_folders_at_other_places_have_their_own_copies(folder):
  for place in ('here', 'there'):
    other = folder.parent / place / folder.name
    make_folder(other)
    for path in other.rglob('*.png'):
      os.utime(path, ns=(0, 0))
    read(other, data_dir=str(folder.parent / 'tfds'))
  assert len(prepared_copies(folder)) == 2


def test_hidden_files_and_other_kinds_and_other_splits_are_left_out(folder):
  for name in ('.DS_Store', 'train/ant/._0.png', 'train/ant/Thumbs.db', 'train/readme.txt',
               'train/.ipynb_checkpoints/0.png', 'unlabelled/0.png'):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('no image')
  assert len(read(folder)) == 12


def test_a_relative_folder_is_found(folder, monkeypatch):
  monkeypatch.chdir(folder.parent)
  config = config_for(folder, folder='my pictures')
  expected = datasets.open_builder(config_for(folder)).data_dir
  assert datasets.open_builder(config).data_dir == expected


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
    (empty('train/cow'), {}, 'folder: {root}/train/cow holds no image (.jpg, .jpeg, .png); add '
     'some, or remove it; images lie in '),
    (one_level_down('test/ant'), {}, 'folder: {root}/test/ant holds no image (.jpg, .jpeg, .png);'),
    (without_classes('train', 3), {}, 'folder: {root}/train holds no classes; images lie in SPLIT'),
    (without_classes('test', 3), {}, 'folder: {root}/test holds no classes; images lie in SPLIT/C'),
    (without_classes('train', 2), {'test_split': 'train'}, "folder: {root}/train holds one class, "
     "'cow'; at least two are needed; images lie in"),
]


@pytest.mark.parametrize('spoil, fields, expected', MISTAKES)
def test_a_mistake_is_named_before_anything_is_written(folder, spoil, fields, expected):
  spoil(folder)
  assert message(datasets.open_builder, config_for(folder, **fields)).startswith(
      'config.data.' + expected.format(root=folder))
  assert not (folder.parent / 'tfds').exists()


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
  found = message(prepared, config_for(folder), kind=errors.DataError)
  assert found == f'config.data.folder: {path} is damaged or no image; replace or remove it'
  path.unlink()
  assert len(read(folder, 'test')) == 6
