"""Prepared data sets: what is asked for is what is opened, and no file has code of others run."""
import errno
import json
import os
import pathlib
import shlex
import shutil
import sys

import numpy as np
import pytest

from kdih import errors
from kdih.data import datasets, prepared, source
from tests.helpers.damage import contents
from tests.helpers.made_data import Small, make_config, message, open_source

OWN = 'tensorflow_datasets.core.features'
EVIL = {'type': 'evil.Feature', 'content': {}}


@pytest.fixture
def copy(small, tmp_path):
  """The folder of a copy of `small:1.0.0`, and its config."""
  root = pathlib.Path(shutil.copytree(small().data_dir, tmp_path / 'tfds'))
  return root / 'small' / '1.0.0', make_config(name='small', data_dir=str(root))


def change(path, edit):
  content = json.loads(path.read_text())
  path.write_text(json.dumps(edit(content) or content))


def feature(**fields):
  """Adds a feature to a description in today's format."""
  return lambda content: content['featuresDict']['features'].update(more=fields)


def in_text(text):
  return feature(pythonClassName=f'{OWN}.features_dict.FeaturesDict', jsonFeature={'json': text})


@pytest.mark.parametrize('name, edit', [
    ('features.json', feature(pythonClassName='evil.Feature', jsonFeature={'json': '{}'})),
    ('features.json', feature(python_class_name='evil.Feature', jsonFeature={'json': '{}'})),
    ('features.json', feature(pythonClassName=f'{OWN}.sequence_feature.Sequence', sequence={
        'feature': {'pythonClassName': 'evil.Feature', 'jsonFeature': {'json': '{}'}}})),
    ('features.json', in_text(json.dumps({'inner': EVIL}))),
    ('features.json', in_text(json.dumps({'number': float('nan'), 'inner': EVIL}))),
    ('features.json', lambda _: {'type': f'{OWN}.features_dict.FeaturesDict',
                                 'content': {'inner': EVIL}}),
    ('features.json', lambda _: EVIL),
    ('features.json', lambda _: {**EVIL, 'type': f'{OWN}.x/../../evil.Feature'}),
    ('dataset_info.json', lambda content: content.update(
        features={'pythonClassName': 'evil.Feature', 'jsonFeature': {'json': '{}'}}))])
@pytest.mark.parametrize('early', [False, True])
def test_only_types_of_tfds_are_imported(copy, tmp_path, monkeypatch, name, edit, early):
  folder, config = copy
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / 'evil.py').write_text(
      'import pathlib\npathlib.Path(__file__).with_name("done").touch()\n')
  builder = Small(data_dir=config.data_dir)
  change(folder / name, edit)
  before = contents(tmp_path)
  found = message(*((datasets.reopen, builder) if early else (datasets.open_builder, config)),
                  kind=errors.DataError)
  assert found.startswith(f'config.data.name: the data set in {folder} has a feature of the type ')
  assert 'evil.Feature' in found and 'evil' not in sys.modules
  assert contents(tmp_path) == before


def test_types_are_still_read_from_the_format_until_tfds_4_5(copy, small):
  folder, config = copy
  features = Small(data_dir=config.data_dir).info.features
  change(folder / 'features.json', lambda _: features.to_json())
  for wanted, read in zip(open_source(small()).read(np.arange(3)),
                          open_source(config).read(np.arange(3)), strict=True):
    np.testing.assert_array_equal(wanted, read)


def nest(path):
  path.write_text('{"a":' * 20_000 + '1' + '}' * 20_000)


def nest_in_text(path):
  change(path, in_text('[' * 200_000))


def pipe(path):
  os.mkfifo(path.with_name('label.labels.txt'))


@pytest.mark.parametrize('spoil, reason', [
    (nest, 'its content is nested over 50 deep'), (nest_in_text, ''),
    (pipe, 'label.labels.txt is no file'),
    (lambda path: path.unlink(), 'it lacks features.json, which TFDS writes since 4.0'),
    (lambda path: path.write_text('[]'), 'Expected `object`, got `array`'),
    (lambda path: change(path, lambda content: content['featuresDict']['features']['label']),
     'its features have no names')])
def test_a_description_that_is_none_is_named(copy, spoil, reason):
  folder, config = copy
  spoil(folder / 'features.json')
  found = message(datasets.open_builder, config, kind=errors.DataError)
  assert found.startswith('config.data.name: the description of the data set in '
                          f'{folder} is damaged ({reason}')


# Names.


@pytest.fixture
def old(digits_dir, tmp_path):
  """A folder that holds digits:0.9.0, which is not the version of the code."""
  folder = tmp_path / 'tfds' / 'digits' / '0.9.0'
  shutil.copytree(pathlib.Path(digits_dir) / 'digits' / '1.0.0', folder)
  change(folder / 'dataset_info.json', lambda content: content.update(version='0.9.0'))
  return tmp_path / 'tfds'


@pytest.mark.parametrize('name', ['digits:0.9.0', 'digits/0.9.0', 'digits:0.*.*', 'Digits:0.9.0'])
def test_a_version_that_is_asked_for_is_opened(old, name):
  config = make_config(name=name, data_dir=str(old))
  builder = datasets.prepare(datasets.open_builder(config))
  assert builder.data_dir == f'{old}/digits/0.9.0'
  assert source.open_splits(builder, config).size('train') == 1438


def test_without_a_version_that_of_the_code_is_meant(old):
  builder = datasets.open_builder(make_config(data_dir=str(old)))
  assert (builder.data_dir, builder.is_prepared()) == (f'{old}/digits/1.0.0', False)


def with_configs(root, *configs):
  """Makes `small` of `root` a data set with these configs."""
  for config in configs:
    target = shutil.copytree(root / 'small' / '1.0.0', root / 'small' / config / '1.0.0')
    change(target / 'dataset_info.json', lambda content, name=config: content.update(
        configName=name))
  shutil.rmtree(root / 'small' / '1.0.0')


@pytest.mark.parametrize('name, opened', [
    ('small/a', 'a'), ('small/b:1.0.0', 'b'), ('small/b/1.0.0', 'b'), ('small', 'a'),
    ('small:1.*.*', 'a')])
def test_a_config_that_is_asked_for_is_opened_and_the_default_otherwise(copy, name, opened):
  root = copy[0].parents[1]
  with_configs(root, 'a', 'b')
  (root / 'small' / '.config').mkdir()
  (root / 'small' / '.config' / 'metadata.json').write_text('{"default_config_name": "a"}')
  builder = datasets.open_builder(make_config(name=name, data_dir=str(root)))
  assert builder.data_dir == f'{root}/small/{opened}/1.0.0'


@pytest.mark.parametrize('name', ['small', 'small/c', 'small:1.0.0', 'small/a:2.0.0', 'small/../a'])
def test_of_a_config_that_is_not_there_the_others_are_listed(copy, name):
  root = copy[0].parents[1]
  with_configs(root, 'a', 'b')
  found = message(datasets.open_builder, make_config(name=name, data_dir=str(root)))
  assert found == (
      "config.data.name: 'small/../a' is no name of a data set; give one such as cifar100, "
      'emnist/letters or emnist/letters:3.1.0' if '..' in name else
      f'config.data.name: there is no {name} in {root}, which holds small/a:1.0.0, small/b:1.0.0; '
      'name one of these')


@pytest.mark.parametrize('name, missing, can', [
    ('digits:2.0.0', 'digits:2.0.0', 'digits:1.0.0'), ('digits/x', 'digits/x', 'digits:1.0.0'),
    ('digits/2.0.0', 'digits:2.0.0', 'digits:1.0.0'),
    ('cifar100:3.0.1', 'cifar100:3.0.1', 'cifar100:3.0.2'),
    ('emnist/letters:1.0.0', 'emnist/letters:1.0.0', 'emnist/balanced:3.1.0, emnist/b')])
def test_of_a_version_that_is_not_there_those_that_can_be_had_are_listed(old, name, missing, can):
  found = message(datasets.open_builder, make_config(name=name, data_dir=str(old)))
  held = ', which holds digits:0.9.0' if name.startswith('digits') else ''
  assert found.startswith(f'config.data.name: there is no {missing} in {old}{held}, and TFDS can '
                          f'prepare {can}')
  assert found.endswith('; name one of these')


@pytest.mark.parametrize('name', [
    'a b', 'digits/', 'digits:', ':1.0.0', 'digits/version=1', 'digits/data_dir=x', 'digits:1.0',
    '../digits', 'digits/a/b'])
def test_what_is_no_name_is_said(tmp_path, name):
  found = message(datasets.open_builder, make_config(name=name, data_dir=str(tmp_path)))
  assert found.startswith(f'config.data.name: {name!r} is no name of a data set; give one such as ')


@pytest.fixture
def offline(monkeypatch):
  def refuse(*_, **__):
    raise datasets.requests.ConnectionError

  monkeypatch.setattr(datasets.requests, 'head', refuse)


@pytest.mark.parametrize('place', ['tfds', 'my "data" $HOME é', "d'or `ls`"])
def test_the_command_that_is_named_prepares_what_is_asked_for(
    tmp_path, monkeypatch, offline, place):
  root = tmp_path / place
  (root / 'emnist' / 'letters' / '3.0.0').mkdir(parents=True)
  (root / 'emnist' / 'letters' / '3.0.0' / 'dataset_info.json').touch()
  builder = datasets.open_builder(make_config(name='emnist/letters', data_dir=str(root)))
  found = message(datasets.prepare, builder, kind=errors.DataError)
  assert found.startswith(f'config.data.name: emnist/letters:3.1.0 is not prepared in {root}, '
                          'which holds emnist/letters:3.0.0 and https://')
  command = found.partition('with `')[2].rpartition('` and copy ')[0]
  python, option, program = shlex.split(command)
  assert (python, option) == ('python', '-c')
  asked = []
  monkeypatch.setattr(type(builder), 'download_and_prepare', lambda self: asked.append(self))
  exec(program, {})
  assert [other.data_dir for other in asked] == [builder.data_dir]


@pytest.mark.parametrize('name', ['imagenet2012', 'imagenet2012/5.1.0', 'imagenet2012:5.1.0'])
def test_files_that_tfds_cannot_download_are_named(tmp_path, name, offline):
  builder = datasets.open_builder(make_config(name=name, data_dir=str(tmp_path)))
  assert builder.data_dir == f'{tmp_path}/imagenet2012/5.1.0'
  found = message(datasets.prepare, builder, kind=errors.DataError)
  assert found.startswith('config.data.name: TFDS could not prepare imagenet2012:5.1.0 (Manual dir')
  assert (f'; put the files into {tmp_path}/downloads/manual that TFDS cannot download (manual_dir '
          'should contain two files: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.') in found


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs the /proc of Linux')
def test_a_folder_in_which_nothing_can_be_written_is_named():
  builder = datasets.open_builder(make_config(data_dir='/proc/self'))
  found = message(datasets.prepare, builder, kind=errors.DataError)
  assert found.startswith('config.data.data_dir: /proc/self cannot be written to ([Errno ')


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
  (tmp_path / 'digits').mkdir()

  def refuse(path):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr('os.listdir', refuse)  # Root may list everything.
  found = message(datasets.open_builder, make_config(data_dir=str(tmp_path)), kind=errors.DataError)
  assert found.startswith(f'config.data.data_dir: {tmp_path}/digits cannot be read ([Errno 13] ')


def refused_by_stat(monkeypatch, path, number):
  stat = os.stat

  def fail(asked, *args, **kwargs):
    if str(asked) == str(path):
      raise OSError(number, os.strerror(number), str(path))
    return stat(asked, *args, **kwargs)

  monkeypatch.setattr(os, 'stat', fail)


@pytest.mark.parametrize('name', [
    'small', 'small/1.0.0/dataset_info.json', 'small/1.0.0/features.json'])
def test_what_cannot_be_looked_at_now_is_neither_unknown_nor_damaged(copy, monkeypatch, name):
  folder, config = copy
  refused_by_stat(monkeypatch, folder.parents[1] / name, errno.ESTALE)
  found = message(datasets.open_builder, config, kind=errors.DataError)
  assert ' cannot be read (' in found and 'Stale file handle' in found
  assert '; make it readable, or ' in found


def test_a_version_that_this_user_may_not_read_hides_no_other(copy, monkeypatch):
  folder, config = copy
  shutil.copytree(folder, folder.with_name('2.0.0'))
  refused_by_stat(monkeypatch, folder.with_name('2.0.0') / 'dataset_info.json', errno.EACCES)
  assert datasets.open_builder(config).data_dir == str(folder)


def test_a_version_that_an_object_store_lacks_is_not_prepared_in_its_copy(
    old, tmp_path, monkeypatch):
  monkeypatch.setattr(datasets, 'is_remote', lambda path: 'remote' in str(path))
  monkeypatch.setattr(datasets.staging, 'stage', lambda data_dir, name: str(old))
  found = message(datasets.open_builder, make_config(data_dir='remote'), kind=errors.DataError)
  assert found == ('config.data.data_dir: there is no digits in remote, which holds digits:0.9.0; '
                   'prepare it on a local disk and copy it there')


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path):
  error = prepared.damaged('example 3', tmp_path, OSError(errno.EIO, 'Input/output error'))
  assert str(error) == (f'config.data.name: example 3 of the data set in {tmp_path} cannot be read '
                        '(Input/output error); make it readable, or run the same command again')
