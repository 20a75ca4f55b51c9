"""Metrics of a phase: each step once, whenever the process was killed, and damaged lines."""
import contextlib
import json
import os
import pathlib
import struct
import tracemalloc

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.compat.proto import event_pb2

from kdih.training import metric_log


def test_damaged_lines_of_metrics_are_left_out_with_one_warning(tmp_path, caplog):
  lines = [b'{"step": 2, "loss": 1.5}', b'{"step": 3, "lo', b'[' * 20_000, b'\xff', b'[1]',
           b'{"loss": 1.0}', b'{"step": -1}', b'{"step": 4, "loss": "x"}', b'{"step": 4, "a": NaN}',
           b'{"step": 2.5}', b'{"step": 4, "a": 1' + b'0' * 400 + b'}',
           b'{"step": 5, "loss": null}', b'{"step": 6, "loss": 2}']
  (tmp_path / 'metrics.jsonl').write_bytes(b'\n'.join(lines) + b'\n{"step": 7, "lo')
  with caplog.at_level('WARNING', 'kdih'):
    found = metric_log.read_metrics(tmp_path / 'metrics.jsonl')
  assert found == [{'step': 2, 'loss': 1.5}, {'step': 5}, {'step': 6, 'loss': 2}]
  assert all(type(line['step']) is int for line in found)
  message, = [record.message for record in caplog.records]
  assert message == f'{tmp_path / "metrics.jsonl"}: 10 of its lines are damaged and left out'


def test_a_file_of_any_size_is_read_in_little_memory(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 2}\n')
  with path.open('ab') as file:
    file.truncate(2**28)  # A hole of zeros.
  with path.open('ab') as file:
    file.write(b'\n{"step": 3}\n')
  tracemalloc.start()
  try:
    assert metric_log.read_metrics(path) == [{'step': 2}, {'step': 3}]
    assert tracemalloc.get_traced_memory()[1] < 2**24
  finally:
    tracemalloc.stop()


def test_metrics_are_continued_after_a_resume(tmp_path):
  for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):
    writer = metric_log.MetricWriter(tmp_path, start, events=False)
    for step in steps:
      writer.write(step, {'loss': np.float64(step), 'start': float('nan') if step == 8 else start})
    writer.close()
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [(line['step'], line['loss'], line['start']) for line in lines] == [
      (2, 2.0, 0), (4, 4.0, 0), (6, 6.0, 4), (8, 8.0, None)]


def events(folder: pathlib.Path) -> list[tuple[int, str]]:
  """(step, metric) of every TensorBoard event, up to one that does not end; sorted."""
  found = []
  for path in folder.glob('events.*'):
    with contextlib.suppress(tf.errors.DataLossError):
      for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        event = event_pb2.Event.FromString(record)
        found += [(event.step, value.tag) for value in event.summary.value]
  return sorted(found)


def test_every_step_stands_once_in_events_after_kills(tmp_path):
  for start, steps in ((0, (2, 4, 6, 8)), (4, (6, 8)), (6, (8, 10)), (0, (2,))):
    before = set(tmp_path.iterdir())
    writer = metric_log.MetricWriter(tmp_path, start)
    for step in steps:
      writer.write(step, {'a': 1.0, 'b': 2.0})
    writer.close()
    expected = [*(step for step in (2, 4, 6, 8, 10) if step <= start), *steps]
    assert events(tmp_path) == [(step, name) for step in expected for name in 'ab']
    new, = [path for path in set(tmp_path.iterdir()) - before if path.name.startswith('events')]
    with new.open('ab') as file:  # The process was killed while it wrote an event.
      file.write(new.read_bytes()[:50])
  assert len(list(tmp_path.iterdir())) == 2  # Files without a metric are gone.


def test_what_is_no_event_is_left_out_and_no_pipe_is_waited_for(tmp_path):
  first = metric_log.MetricWriter(tmp_path, 0)
  first.write(2, {'a': 1.0})
  first.close()
  path, = tmp_path.glob('events*')
  with tf.io.TFRecordWriter(str(path)) as file:
    file.write(b'\xff no event')
    event = event_pb2.Event(step=2)
    event.summary.value.add(tag='a', simple_value=1.0)
    file.write(event.SerializeToString())
  os.mkfifo(tmp_path / 'events.out.tfevents.1.pipe')
  metric_log.MetricWriter(tmp_path, 4).close()
  (tmp_path / 'events.out.tfevents.1.pipe').unlink()
  assert events(tmp_path) == [(2, 'a')]


@pytest.mark.parametrize('size', [10**12, 2**60, 2**64 - 1])
def test_a_record_that_is_longer_than_its_file_is_left_out(tmp_path, size):
  """TensorFlow makes room for it, and the process dies."""
  first = metric_log.MetricWriter(tmp_path, 0)
  first.write(2, {'a': 1.0})
  first.close()
  path, = tmp_path.glob('events*')
  length = struct.pack('<Q', size)
  crc = google_crc32c.value(length)
  with path.open('ab') as file:
    file.write(length + struct.pack('<I', (crc >> 15 | crc << 17) + 0xa282ead8 & 0xffffffff)
               + b'x' * 100)
  metric_log.MetricWriter(tmp_path, 4).close()
  assert events(tmp_path) == [(2, 'a')]


def test_what_is_cut_is_whole_at_any_moment(tmp_path):
  """A file is never shortened: it is written anew, and then takes the place of the old one."""
  writer = metric_log.MetricWriter(tmp_path, 0)
  for step in (2, 4, 6):
    writer.write(step, {'a': 1.0})
  writer.close()
  before = {}
  for path in list(tmp_path.iterdir()):
    os.link(path, tmp_path.parent / path.name)
    before[path] = path.read_bytes()
  metric_log.MetricWriter(tmp_path, 4).close()
  for path, content in before.items():
    assert (tmp_path.parent / path.name).read_bytes() == content
    assert path.read_bytes() != content
