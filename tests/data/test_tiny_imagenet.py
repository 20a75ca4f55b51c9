"""Tiny-ImageNet from a small zip in the format of the official one."""
import functools
import http.server
import io
import socket
import threading
import zipfile

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from kdih import errors
from kdih.data import datasets, loaders, sampling, tiny_imagenet
from kdih.data.source import open_split
from kdih.data.spec import DataSpec
from tests.helpers.made_data import examples, make_config, message

# Not in the order of their ids, as in the official file.
WNIDS = [f'n{10_000_000 + (i * 77) % 200:08}' for i in range(200)]
FILLED = ('n10000003', 'n10000150', 'n10000199')
GREY = ('train/n10000150/images/n10000150_1.JPEG', 'val/images/val_2.JPEG')


def jpeg(seed, mode):
  levels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
  picture = PIL.Image.fromarray(levels).resize((64, 64)).convert(mode)
  file = io.BytesIO()
  picture.save(file, 'JPEG')
  return file.getvalue()


def contents():
  """{path in the zip: bytes} of the images, and the wnid of each."""
  names = {f'train/{wnid}/images/{wnid}_{i}.JPEG': wnid for wnid in FILLED for i in range(4)}
  names |= {f'val/images/val_{i}.JPEG': FILLED[i % 2] for i in range(5)}
  return ({name: jpeg(seed, 'L' if name in GREY else 'RGB') for seed, name in enumerate(names)},
          names)


@pytest.fixture(scope='session')
def archive(tmp_path_factory):
  """The zip, in a folder of its own."""
  path = tmp_path_factory.mktemp('zip') / 'tiny-imagenet-200.zip'
  files, wnids = contents()
  with zipfile.ZipFile(path, 'w') as file:
    def write(name, content):
      file.writestr(f'tiny-imagenet-200/{name}', content)
    write('wnids.txt', '\n'.join(WNIDS) + '\n')
    # Words of other classes too; two classes share theirs.
    write('words.txt', 'n00001740\tentity\n' + ''.join(
        f'{wnid}\t{"crane" if wnid in FILLED[:2] else "thing, " + wnid}\n' for wnid in WNIDS))
    write('val/val_annotations.txt', ''.join(
        f'{name.split("/")[-1]}\t{wnid}\t0\t32\t44\t62\n' for name, wnid in wnids.items()
        if name.startswith('val/')))
    write('test/images/test_0.JPEG', jpeg(99, 'RGB'))
    for wnid in FILLED:
      write(f'train/{wnid}/{wnid}_boxes.txt', f'{wnid}_0.JPEG\t0\t10\t63\t58\n')
    for name, content in files.items():
      write(name, content)
  return path


@pytest.fixture
def recorded(archive, monkeypatch):
  """A function that records an address and the digest of the small zip for the official ones."""
  info = tfds.core.download.checksums.compute_url_info(archive)

  def record(url):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(tiny_imagenet, '_URL', url)
    monkeypatch.setattr(tiny_imagenet.TinyImagenet, 'url_infos', {url: info})
  return record


@pytest.fixture
def server(archive):
  """The address of the zip on a web server of this machine."""
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=archive.parent)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{running.server_port}/{archive.name}'
    running.shutdown()


def nobody():
  """An address of this machine that does not answer."""
  with socket.socket() as unused:
    unused.bind(('127.0.0.1', 0))
    return f'http://127.0.0.1:{unused.getsockname()[1]}/tiny-imagenet-200.zip'


def config_for(folder):
  return make_config(name='tiny_imagenet', data_dir=str(folder), test_split='validation')


def check_prepared(config):
  builder = datasets.open_builder(config)
  assert list(builder.info.splits) == ['train', 'validation']
  files, wnids = contents()
  for field, top, count in (('train_split', 'train', 12), ('test_split', 'val', 5)):
    source = open_split(builder, field, config)
    names = [e['file'].decode() for e in builder.as_data_source(split=config[field])]
    assert len(source) == count and set(names) == {n for n in files if n.startswith(top)}
    for loader in ('memory', 'streaming'):
      everything = sampling.eval_batches(np.arange(count), count)
      batch, = examples(loaders.make_loader(loader, source), everything)
      for i, name in enumerate(names):
        decoded = PIL.Image.open(io.BytesIO(files[name])).convert('RGB')
        np.testing.assert_array_equal(batch['image'][i], np.asarray(decoded))
        assert batch['label'][i] == sorted(WNIDS).index(wnids[name])
    np.testing.assert_array_equal(source.labels(), batch['label'])
  assert builder.info.features['label'].int2str(150) == 'n10000150 crane'


def test_the_zip_is_downloaded_and_every_image_has_its_label(tmp_path, recorded, server):
  recorded(server)
  config = config_for(tmp_path)
  builder = datasets.open_builder(config)
  spec = datasets.describe(builder, config)
  assert spec == DataSpec('tiny_imagenet', (64, 64, 3), 200)
  datasets.prepare(builder)
  check_prepared(config)
  known = datasets.describe(datasets.open_builder(config), config).classes
  assert len(known) == 200 and known[150] == 'n10000150 crane'


def test_without_a_network_the_zip_is_read_from_the_folder_in_the_error(
    tmp_path, recorded, archive):
  url = nobody()
  recorded(url)
  config = config_for(tmp_path)
  found = message(datasets.prepare, datasets.open_builder(config), kind=errors.DataError)
  manual = tmp_path / 'downloads' / 'manual'
  assert found.startswith(
      f'config.data.name: tiny_imagenet:1.0.0 is not prepared in {tmp_path} and {url} does '
      f'not answer; put tiny-imagenet-200.zip into {manual}, or prepare it where there is a '
      'network with ')
  manual.mkdir(parents=True)
  (manual / archive.name).write_bytes(archive.read_bytes())
  datasets.prepare(datasets.open_builder(config))
  check_prepared(config)


def test_a_damaged_zip_is_refused(tmp_path, recorded, archive):
  recorded(nobody())
  path = tmp_path / 'downloads' / 'manual' / archive.name
  path.parent.mkdir(parents=True)
  path.write_bytes(archive.read_bytes()[:-100])
  builder = datasets.open_builder(config_for(tmp_path))
  found = message(datasets.prepare, builder, kind=errors.DataError)
  assert found.startswith('config.data.name: TFDS could not prepare tiny_imagenet:1.0.0 (Artifact ')
  assert f'{path}, has wrong checksum); put tiny-imagenet-200.zip into ' in found
