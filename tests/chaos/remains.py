"""What a command leaves in its folder, and in what it differs from what another one left."""
import collections
import csv
import hashlib
import json
import pathlib
import re
import xml.etree.ElementTree
from collections.abc import Iterator
from typing import Any

import PIL.Image

# Names of what differs from run to run: times, speeds, and what produced a result.
_OTHER_EACH_TIME = {
    'seconds', 'examples_per_second', 'latency_ms', 'images_per_second', 'time', 'made_by',
    'command', 'git_commit', 'bytes'}  # tensorstore divides arrays into files as it likes.
# Lines of texts that hold times and speeds, and what produced a result.
_TIMES = re.compile(r'^\| (bytes on disk|latency of one image|images per second|'
                    r'(teacher|heads|student\S*) +\| +\d+ \|)|'
                    r'^(- | *<li><code>)(command|git commit): ')
_TEXTS = {'.md', '.csv', '.tex', '.txt', '.html'}
_PICTURES = {'.png', '.svg'}
Remains = dict[str, dict[str, Any]]


def collect(folder: pathlib.Path) -> Remains:
  """Returns what lies in a folder: {what: {path: content}}. It computes with jax.

  'files' holds the names of all files and folders, with '*' for what is drawn at random; the others
  are 'variables' (digests of arrays), 'results', 'metrics', 'events' (how often a step has a tag),
  'tables', 'pictures' and 'caches'.
  """
  found: Remains = collections.defaultdict(dict)
  names = set()
  for path in sorted(folder.rglob('*')):
    name = str(path.relative_to(folder))
    if path.suffix != '.lock' and path.name != '.lock':  # Some locks are files that come and go.
      names.add(_general(name))
    if path.name == 'variables' and (path / 'meta').is_dir():
      found['variables'][name] = _variables(path)
    elif re.search(r'/(checkpoints|variables|damaged)/', name):
      continue
    elif path.name == 'metrics.jsonl':
      found['metrics'][name] = [_without_times(json.loads(line))
                                for line in path.read_text().splitlines()]
    elif path.name.startswith('events.out.tfevents'):
      found['events'].setdefault(str(path.relative_to(folder).parent), []).extend(_events(path))
    elif path.suffix == '.json':
      found['results'][name] = _without_times(json.loads(path.read_text()))
    elif path.suffix in _TEXTS and path.is_file():
      found['tables'][name] = _rows(path)
    elif path.suffix in _PICTURES:
      found['pictures'][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    elif path.name == 'rows.bin':
      found['caches'][name] = hashlib.sha256(path.read_bytes()).hexdigest()
  found['events'] = {name: sorted(map(list, collections.Counter(events).items()))
                     for name, events in found['events'].items()}
  found['files'] = dict.fromkeys(names, True)
  return json.loads(json.dumps(found))


def differences(whole: Remains, found: Remains) -> list[str]:
  """Returns in what `found` differs from `whole`, a line each, which begins with what it is.

  Args:
    whole: what an undisturbed run leaves.
    found: what another one leaves.
  """
  files, now = (set(each.get('files', {})) for each in (whole, found))
  return [*(f'left over: {name}' for name in sorted(now - files)),
          *(f'missing: {name}' for name in sorted(files - now)),
          *(f'{what}: {line}' for what in sorted(whole.keys() | found.keys()) if what != 'files'
            for line in _differ(whole.get(what, {}), found.get(what, {}), ''))]


def report_problems(folder: pathlib.Path) -> list[str]:
  """Returns what is missing, left over or broken in a report, whatever it compares."""
  report = folder / 'report.md'
  text = report.read_text() if report.is_file() else ''
  shown = re.findall(r'^!\[.*\]\((pictures/.*)\.png\)$', text, re.MULTILINE)
  files = {'report.md', 'results.csv', 'runs.csv', 'tables.tex', 'index.html'}
  whole = {'files': dict.fromkeys(
      files.union(f'{name}{suffix}' for name in shown for suffix in _PICTURES), True)}
  paths = {str(path.relative_to(folder)): path for path in folder.rglob('*') if path.is_file()}
  broken = [f'broken: {name}' for name, path in sorted(paths.items()) if _is_broken(path)]
  return [f'report: {line}' for line in (
      *differences(whole, {'files': dict.fromkeys(paths, True)}), *broken)]


def _is_broken(path: pathlib.Path) -> bool:
  """Returns whether a file of a report is not whole."""
  try:
    match path.suffix:
      case '.png':
        PIL.Image.open(path).load()
      case '.svg':
        xml.etree.ElementTree.parse(path)
      case '.html':
        return not path.read_text().rstrip().endswith('</html>')
      case '.csv':
        header, *rows = csv.reader(path.read_text().splitlines())
        return not rows or any(len(row) != len(header) for row in rows)
    return not path.read_text().endswith('\n') if path.suffix in _TEXTS else False
  except (OSError, ValueError, SyntaxError):
    return True


def _differ(one: Any, other: Any, path: str) -> Iterator[str]:
  if isinstance(one, dict) and isinstance(other, dict):
    for key in sorted(one.keys() | other.keys()):
      at = f'{path} {key}'.strip()
      if key not in other:
        yield f'{at} is missing'
      elif key not in one:
        yield f'{at} is left over: {str(other[key])[:80]}'
      else:
        yield from _differ(one[key], other[key], at)
  elif isinstance(one, list) and isinstance(other, list):
    gone = [item for item in one if item not in other]
    more = [item for item in other if item not in one]
    if gone or more:
      yield f'{path} lacks {str(gone)[:120]} and has {str(more)[:120]} instead'
    elif one != other:
      yield f'{path} has {str(other)[:120]} where {str(one)[:120]} was'
  elif one != other:
    yield f'{path} is {str(other)[:80]} where {str(one)[:80]} was'


def _general(name: str) -> str:
  """Returns the name of a file without what is drawn at random, or a time."""
  name = re.sub(r'events\.out\.tfevents.*', 'events', name)
  return re.sub(r'/d/[0-9a-f]{32}$', '/d/*', name)


def _variables(path: pathlib.Path) -> dict[str, str]:
  import jax
  import numpy as np

  from kdih.training import orbax_files
  leaves = jax.tree_util.tree_leaves_with_path(orbax_files.restore(path))
  return {jax.tree_util.keystr(key): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()[:12]
          for key, leaf in leaves}


def _events(path: pathlib.Path) -> list[str]:
  from tensorboard.backend.event_processing import event_file_loader
  return [f'step {event.step} {value.tag}'
          for event in event_file_loader.EventFileLoader(str(path)).Load()
          for value in event.summary.value if 'second' not in value.tag]


def _rows(path: pathlib.Path) -> list[str]:
  lines = path.read_text().splitlines()
  if path.suffix != '.csv':
    return [line for line in lines if not _TIMES.search(line)]
  return [str({key: value for key, value in row.items() if key not in _OTHER_EACH_TIME})
          for row in csv.DictReader(lines)]


def _without_times(content: Any) -> Any:
  if isinstance(content, dict):
    return {key: _without_times(value) for key, value in content.items()
            if key.rpartition('/')[2] not in _OTHER_EACH_TIME}
  if isinstance(content, list):
    return [_without_times(value) for value in content]
  return content
