"""What the system, or a store, cannot do now is told apart from what is damaged."""
import errno

import aiohttp
import gcsfs.retry
import google.auth.exceptions
import pytest
import tensorflow as tf

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
