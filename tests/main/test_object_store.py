"""A workdir and a data set on an object store: Google's protocol, spoken by a local emulator."""
import http
import http.server
import os
import pathlib
import socket
import subprocess
import sys
import threading
import urllib.parse

import pytest

from tests.helpers.runs import ROOT, exported, tiny_command

# What asks Google itself for the kind of a bucket, unless it is told so before it is imported.
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'
gcsfs = pytest.importorskip('gcsfs')
server_lib = pytest.importorskip('gcp_storage_emulator.server')


def generation(handler) -> str:
  """Of the object that a request is about; '0' where there is none."""
  url = urllib.parse.urlsplit(handler.path)
  name = urllib.parse.parse_qs(url.query).get('name', [url.path.partition('/o/')[2]])[0]
  objects = handler.storage.objects.get('bucket', {})
  return objects.get(urllib.parse.unquote(name), {}).get('generation', '0')


def conditional(handle):
  """The emulator's `handle`, one request at a time, and with the conditions that it leaves out.

  Without them, two writers of one manifest would lose what the other wrote.
  """
  lock = threading.Lock()

  def locked(router, method):
    handler = router._request_handler
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(handler.path).query)
    with lock:
      now = generation(handler)
      if query.get('ifGenerationMatch', [now]) != [now]:
        refuse(handler, http.HTTPStatus.PRECONDITION_FAILED)
      elif query.get('ifGenerationNotMatch') == [now]:
        refuse(handler, http.HTTPStatus.NOT_MODIFIED)
      else:
        handle(router, method)

  return locked


def refuse(handler, status: http.HTTPStatus):
  handler.rfile.read(int(handler.headers.get('Content-Length', 0)))
  handler.send_response(status)
  handler.send_header('Content-Length', '0')
  handler.end_headers()


def with_generation(end_headers):
  def end(handler):
    handler.send_header('x-goog-generation', generation(handler))
    end_headers(handler)

  return end


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  """(file system, environment of processes that see it). It has one folder, `bucket`.

  They see no TensorFlow, which would speak to Google itself.
  """
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  blocked = tmp_path_factory.mktemp('blocked')
  (blocked / 'tensorflow.py').write_text('raise ImportError("blocked")')
  address = f'http://localhost:{port}'
  environment = {'STORAGE_EMULATOR_HOST': address, 'TENSORSTORE_GCS_HTTP_URL': address,
                 'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'any', 'EPATH_USE_TF': 'false',
                 'HOME': str(tmp_path_factory.mktemp('home')),
                 'PYTHONPATH': os.pathsep.join([str(blocked), str(ROOT)])}
  with pytest.MonkeyPatch.context() as patch:
    # One thread would wait for idle connections, and the emulator's memory is not made for more.
    patch.setattr(server_lib.server, 'HTTPServer', http.server.ThreadingHTTPServer)
    patch.setattr(server_lib.Router, 'handle', conditional(server_lib.Router.handle))
    handler = server_lib.RequestHandler
    patch.setattr(handler, 'end_headers', with_generation(handler.end_headers))
    server = server_lib.create_server('localhost', port, in_memory=True, default_bucket='bucket')
    server.start()
    yield gcsfs.GCSFileSystem(endpoint_url=address, token='anon'), environment
    server.stop()


def run(environment, workdir, data_dir, *overrides) -> subprocess.CompletedProcess:
  command = tiny_command(workdir, data_dir, *overrides)
  return subprocess.run([sys.executable, '-m', 'kdih.main', *command[1:]], capture_output=True,
                        text=True, check=False, timeout=200,
                        env={**os.environ, **environment})


@pytest.mark.slow
def test_a_run_on_an_object_store_is_the_run_on_a_disk(store, tmp_path, finished, digits_dir):
  """Cut off before the heads, gone on with; the data come from the store too."""
  files, environment = store
  for path in pathlib.Path(digits_dir).rglob('digits/**/*'):
    if path.is_file():
      files.pipe_file(f'bucket/tfds/{path.relative_to(digits_dir)}', path.read_bytes())
  command = environment, 'gs://bucket/run', 'gs://bucket/tfds', '--config.student.methods=dih'
  begun = run(*command, '--config.phases=teacher')
  assert begun.returncode == 0, begun.stderr
  assert 'data: copying' in begun.stderr
  done = run(*command)
  assert done.returncode == 0, done.stderr
  assert 'data: copying' not in done.stderr and 'teacher: epoch' not in done.stderr
  local = tmp_path / 'run'
  for name in files.find('bucket/run'):
    target = local / name.removeprefix('bucket/run/')
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(files.cat_file(name))
  assert {path.name for path in local.iterdir()} >= {
      'manifest.json', 'results.json', 'report.md', 'training_curves.png'}
  for phase in ('teacher', 'heads', 'student/dih'):
    one, other = exported(local, phase), exported(finished, phase)
    assert {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in other.items()}
    assert (local / phase / 'metrics.jsonl').read_text().count('val/top1') == 3


@pytest.mark.slow
def test_a_data_set_that_is_not_on_the_store_is_named(store):
  files, environment = store
  done = run(environment, 'gs://bucket/other', 'gs://bucket/none')
  assert done.returncode == 2
  assert 'config.data.data_dir: there is no digits in gs://bucket/none' in done.stderr
  assert not files.find('bucket/other')
