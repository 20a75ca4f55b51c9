"""What the system, or a store, cannot do now is told apart from what is damaged."""
import errno
import os

import aiohttp
import gcsfs.retry
import google.auth.exceptions
import pytest
import tensorflow as tf

from kdih import errors
from kdih.runtime import files


def tensorstore(code: str, reason: str) -> ValueError:
  """An error as tensorstore raises it."""
  return ValueError(f'{code}Error opening "zarr" driver: Error reading "params.k/.zarray" in OCDBT '
                    f'database at "gs://bucket/run/": {reason} [tensorstore_spec=\'{{}}\']')


@pytest.mark.parametrize('error', [
    tensorstore('ABORTED: ', 'All 32 retry attempts failed: Service Unavailable [HTTP code 503]'),
    tensorstore('ABORTED: ', 'All 32 retry attempts failed: CURL error Could not resolve hostname'),
    tensorstore('UNAVAILABLE: ', 'CURL error[28] Timeout was reached'),
    tensorstore('DEADLINE_EXCEEDED: ', ''), tensorstore('RESOURCE_EXHAUSTED: ', 'quota'),
    tensorstore('INTERNAL: ', ''), tensorstore('UNKNOWN: ', 'Proxy [HTTP code 407]'),
    tf.errors.UnavailableError(None, None, 'libcurl code 6'),
    tf.errors.AbortedError(None, None, 'All 10 retry attempts failed'),
    gcsfs.retry.HttpError({'code': 503, 'message': 'Backend error'}),
    aiohttp.ServerDisconnectedError(), google.auth.exceptions.TransportError('no answer'),
    TimeoutError('timed out'), ConnectionError('no answer'), OSError('Forbidden: bucket/run')])
def test_a_store_that_does_not_answer_is_an_error_of_the_system(error):
  assert files.system_error(error) == errno.EIO


@pytest.mark.parametrize('error', [
    tensorstore('PERMISSION_DENIED: ', 'Forbidden [HTTP code 403]'),
    tensorstore('UNAUTHENTICATED: ', 'Unauthorized'), PermissionError('denied'),
    tf.errors.PermissionDeniedError(None, None, 'Forbidden'),
    tf.errors.UnauthenticatedError(None, None, 'no credentials')])
def test_a_store_that_denies_the_access_is_an_error_of_the_system(error):
  assert files.system_error(error) == errno.EACCES


@pytest.mark.parametrize('error', [
    tensorstore('DATA_LOSS: ', 'CRC-32C checksum verification failed'),
    tensorstore('OUT_OF_RANGE: ', 'Requested byte range [0, 8) is not valid for value of size 0'),
    tensorstore('FAILED_PRECONDITION: ', 'Truncated Zstd-compressed stream; at byte 0'),
    tensorstore('NOT_FOUND: ', ''), tensorstore('', 'ZSTD_decompressStream() failed'),
    tf.errors.DataLossError(None, None, 'corrupted'), tf.errors.NotFoundError(None, None, ''),
    FileNotFoundError('x/metadata not found.'), IsADirectoryError('x'), NotADirectoryError('x'),
    KeyError('UNKNOWN'), ValueError('it names no splits')])
def test_what_is_damaged_or_missing_is_none(error):
  assert files.system_error(error) is None


@pytest.fixture
def unlisted(tmp_path, monkeypatch):
  """A function that keeps the folder `w/x`, which holds a link, from being listed."""
  (tmp_path / 'w/x').mkdir(parents=True)
  (tmp_path / 'w/x/result.json').symlink_to('/elsewhere')
  scandir = os.scandir

  def refuse(number):
    def fail(path='.'):
      if str(path).endswith('w/x'):
        raise OSError(number, os.strerror(number), path)
      return scandir(path)

    monkeypatch.setattr(os, 'scandir', fail)

  return refuse


@pytest.mark.parametrize('number', [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_folder_that_cannot_be_listed_now_may_hold_a_link(tmp_path, unlisted, number):
  unlisted(number)
  with pytest.raises(errors.ConfigError) as raised:
    files.require_ordinary(tmp_path / 'w', '--workdir')
  assert str(raised.value) == (
      f'--workdir: {tmp_path}/w/x cannot be listed ({os.strerror(number)}); make it readable, or '
      'run the same command again')


def test_a_folder_that_is_gone_or_another_users_holds_none(tmp_path, unlisted, monkeypatch):
  unlisted(errno.ENOENT)
  files.require_ordinary(tmp_path / 'w', '--workdir')
  unlisted(errno.EACCES)
  monkeypatch.setattr(os, 'access', lambda path, mode: False)  # Root may enter everything.
  files.require_ordinary(tmp_path / 'w', '--workdir')
  files.require_ordinary(tmp_path / 'none', '--workdir')


def test_folders_of_others_may_be_named_like_files(tmp_path):
  (tmp_path / 'notes' / 'plots.png').mkdir(parents=True)
  files.require_ordinary(tmp_path, '--output')
  (tmp_path / 'student' / 'plots.png').mkdir(parents=True)
  with pytest.raises(errors.ConfigError, match='student/plots.png is a folder, and a file'):
    files.require_ordinary(tmp_path, '--output')
