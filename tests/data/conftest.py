"""A small data set, prepared once."""
import pytest
import tensorflow_datasets as tfds

from tests.helpers.made_data import FORMATS, Small, make_config


@pytest.fixture(scope='session')
def small(tmp_path_factory):
  """Prepares Small in each file format, in three shards; gives a function that makes configs."""
  folders = {name: str(tmp_path_factory.mktemp(name)) for name in FORMATS}
  for file_format, folder in folders.items():
    Small(data_dir=folder).download_and_prepare(
        file_format=file_format, download_config=tfds.download.DownloadConfig(num_shards=3))
  return lambda file_format='array_record', **fields: make_config(
      **{'name': 'small', 'data_dir': folders[file_format], **fields})
