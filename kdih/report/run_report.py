"""The report of a run: a table, pictures, `report.md`, and `results.json` for programs."""
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import tabulate

from kdih import errors
from kdih.cohort.members import FINAL, MEAN
from kdih.models import cost
from kdih.phases import exported_variables
from kdih.phases.networks import Networks
from kdih.report import run_plots, style
from kdih.report.tables import markdown_escaped
from kdih.runtime import run_files
from kdih.runtime.files import write_atomically
from kdih.runtime.workdir import Workdir
from kdih.training.metric_log import read_metrics

logger = logging.getLogger(__name__)

Results = dict[str, Any]

_BATCH_SIZE = 128  # Images per forward pass when the throughput is measured.


def _percent(fraction: float) -> str:
  return f'{100 * fraction:.2f}'


@dataclasses.dataclass(frozen=True)
class _Column:
  """A column of the accuracy table.

  Attributes:
    title: the title, in lines for the terminal.
    keys: the keys that lead to the value in a result.
    formatted: returns the value as text.
    meaning: the explanation under the table of `report.md`.
  """

  title: str
  keys: tuple[str, ...]
  formatted: Callable[[float], str]
  meaning: str

  def cell(self, result: dict) -> str:
    value: Any = result
    for key in self.keys:
      value = (value or {}).get(key)
    return '-' if value is None else self.formatted(value)


_COLUMNS = (
    _Column('test\ntop-1 %\n(last)', ('test_last', 'top1'), _percent,
            'test images that are classified correctly, after the last step'),
    _Column('test\ntop-1 %\n(best val)', ('test_best_val', 'top1'), _percent,
            'the same with the variables that did best on the validation images; these variables '
            'are kept, and all columns to the right are measured with them'),
    _Column('test\ntop-5 %', ('test_best_val', 'top5'), _percent,
            'test images whose class is among the five classes with the largest logits'),
    _Column('val\ntop-1 %', ('val', 'top1'), _percent,
            'validation images, taken from the train split, that are classified correctly'),
    _Column('test\nloss', ('test_best_val', 'loss'), lambda nats: f'{nats:.3f}',
            'mean cross-entropy on the test images, in nats'),
    _Column('agreement\n%', ('test_best_val', 'agreement'), _percent,
            'test images that are assigned to the same class as by the teacher'),
    _Column('parameters', ('parameters',), lambda count: f'{count:,}',
            'number of trained parameters; for a head, without the backbone'),
)


def write(workdir: Workdir, networks: Networks, config: ml_collections.ConfigDict) -> Results:
  """Writes `results.json`, the pictures and `report.md` of the phases that are finished.

  Args:
    workdir: the workdir of the run.
    networks: the networks that were built from `config`.
    config: the config of the run.

  Returns:
    The content of `results.json`: `Workdir.results`, and `compression`, {'device', 'teacher',
    'student'}, if teacher and student are trained. The costs in `compression` are those of
    `cost.measure`, with the `bytes` of the variables on disk and their `fingerprint`.
  """
  results = workdir.results()
  if 'teacher' in results and 'student' in results:
    results['compression'] = _compression(workdir, networks, results)
  run_files.write(workdir.path / 'results.json', results)
  manifest = run_files.read(workdir.path / 'manifest.json', run_files.Manifest)
  text = _markdown(results, config, _draw(workdir, results), manifest)
  write_atomically(workdir.path / 'report.md', text)
  return results


def _compression(
    workdir: Workdir, networks: Networks, results: Results
) -> dict[str, Any]:
  known = (workdir.reported() or {}).get('compression')
  fingerprints = {name: result['fingerprint'] for name, result in results['student'].items()}
  if (known and known['teacher']['fingerprint'] == results['teacher']['fingerprint']
      and known['student']['fingerprint'] in fingerprints.values()):
    return known
  logger.info('report: measures the cost of teacher and student')
  phases = {'teacher': 'teacher', 'student': f'student/{next(iter(fingerprints))}'}
  paths = {role: workdir.path / phase / 'variables' for role, phase in phases.items()}
  shapes = {'teacher': networks.teacher_variables, 'student': networks.student_variables}
  variables = {role: exported_variables.load(path, shapes[role], f'config.{role}.name')
               for role, path in paths.items()}
  return {'device': jax.local_devices()[0].device_kind, **{
      role: {**cost.measure(getattr(networks, role), variables[role], networks.spec.image_shape,
                            batch_size=_BATCH_SIZE),
             'bytes': cost.bytes_on_disk(path),
             'fingerprint': _phases(results)[phases[role]]['fingerprint']}
      for role, path in paths.items()}}


def _draw(workdir: Workdir, results: Results) -> dict[str, str]:
  """Draws the pictures of the run and returns {title: name of the file}."""
  pictures = {}
  if len(_classifiers(results)) > 1:
    pictures['Accuracy by depth'] = 'accuracy_by_depth.png'
    style.save(run_plots.accuracy_by_depth(results), workdir.path / pictures['Accuracy by depth'])
  logs = {phase: workdir.path / phase / 'metrics.jsonl' for phase in _phases(results)}
  if curves := {phase: lines for phase, log in logs.items() if (lines := read_metrics(log))}:
    pictures['Training curves'] = 'training_curves.png'
    style.save(run_plots.training_curves(curves), workdir.path / pictures['Training curves'])
  return pictures


def _phases(results: Results) -> dict[str, dict]:
  """Returns {phase: its result}, in the order in which the phases run."""
  students = {f'student/{name}': result for name, result in results.get('student', {}).items()}
  return {name: result for name, result in {**results, **students}.items()
          if name in ('teacher', 'heads', *students)}


def _classifiers(results: Results) -> dict[str, dict]:
  """Returns {name of a classifier: its measurements}, in the order of the table."""
  members = dict(results.get('heads', {}).get('members', {}))
  final = members.pop(FINAL, None)
  mean = members.pop(MEAN, None)
  rows = {'teacher': results.get('teacher', final),
          **{f'head {tap}': result for tap, result in members.items()},
          'cohort mean': mean,
          **{f'student {name}': result for name, result in results.get('student', {}).items()}}
  return {name: result for name, result in rows.items() if result}


def _columns(results: Results) -> list[_Column]:
  """Returns the columns that have a value in any row; `best val` needs a validation split."""
  rows = _classifiers(results).values()
  return [column for column in _COLUMNS
          if any(column.cell(result) != '-' for result in rows)
          and (_validated(results) or '(best val)' not in column.title)]


def _validated(results: Results) -> bool:
  return any(result['val'] for result in _classifiers(results).values())


def _accuracy_cells(results: Results) -> list[list[str]]:
  """Returns the rows of the accuracy table, the titles first; the first cell is a name.

  The names are of whoever wrote the results, and can be printed.
  """
  columns = _columns(results)
  rows = [[errors.printable(name), *(column.cell(result) for column in columns)]
          for name, result in _classifiers(results).items()]
  return [['', *(column.title for column in columns)], *rows]


def table(results: Results) -> str:
  """Returns the table of accuracies for the terminal, with a line for each classifier.

  Args:
    results: what `write` returned.
  """
  titles, *rows = _accuracy_cells(results)
  if not rows:
    return 'no phase is finished yet'
  lines = max(title.count('\n') for title in titles)
  raised = ['\n' * (lines - title.count('\n')) + title for title in titles]  # The last lines align.
  return tabulate.tabulate([raised, *rows], tablefmt='plain', disable_numparse=True,
                           preserve_whitespace=True, colalign=_alignment(titles))


def _alignment(titles: list[str]) -> list[str]:
  return ['left', *['right'] * (len(titles) - 1)]


def _markdown(
    results: Results, config: ml_collections.ConfigDict, pictures: dict[str, str], manifest: Any
) -> str:
  names = config.data.name, config.teacher.name, config.student.name
  parts = ['# {}: {} → {}'.format(*map(markdown_escaped, names))]
  if not _classifiers(results):
    parts.append('No phase is finished yet.')

  if columns := _columns(results):
    parts += [
        '## Accuracy',
        markdown_table(results),
        '\n'.join(f'- {c.title}: {c.meaning}.'.replace('\n', ' ') for c in columns)]

  if costs := results.get('compression'):
    parts += [
        '## Compression',
        _markdown_table([['', 'teacher', 'student', 'student, % of teacher'],
                         *_compression_rows(results)]),
        f'Inference on one device ({markdown_escaped(costs["device"])}). FLOPs are those of a '
        'forward pass, a multiply-add counted as two. Times are medians.']

  if phases := _phases(results):
    parts += [
        '## Training',
        _markdown_table([
            ['phase', 'steps', 'seconds', 'examples per second'],
            *([phase, f'{result["steps"]:,}', f'{result["seconds"]:,.1f}',
               f'{result["examples_per_second"]:,.0f}'] for phase, result in phases.items())])]

  if changed := [f'- {markdown_escaped(f"{phase}: {line}")}' for phase, result in phases.items()
                 for line in result.get('accepted', ())]:
    parts += ['## Accepted changes',
              'These parts of the run had changed when it was resumed, before the phase ended:',
              '\n'.join(changed)]

  if lost := [f'- {markdown_escaped(phase)}: those of step {best["step"]:,}, with a validation '
              f'accuracy of {_percent(best["top1"])} %' for phase, result in phases.items()
              if (best := result.get('best_lost'))]:
    parts += ['## Lost variables',
              'The files of the best variables of these phases were damaged. The best ones that '
              'were left were exported and measured:', '\n'.join(lost)]

  for title, picture in pictures.items():
    parts += [f'## {title}', f'![{title}]({picture})']
    if picture == 'training_curves.png':
      parts.append(_about_curves(results))

  facts = {'seed': str(config.seed)}
  if manifest:
    facts |= {
        'command': f'`{manifest["command"]}`',
        'git commit': manifest['git_commit'],
        'devices': f'{", ".join(manifest["devices"])} ({manifest["platform"]})',
        'XLA_FLAGS': f'`{manifest["xla_flags"]}`' if manifest['xla_flags'] else 'not set',
        'versions': ', '.join(f'{name} {at}' for name, at in manifest['versions'].items()),
    }
  parts += ['## Provenance', '\n'.join(f'- {name}: {fact}' for name, fact in facts.items())]
  return '\n\n'.join(parts) + '\n'


def _about_curves(results: Results) -> str:
  """Returns what the losses of the training curves and of `metrics.jsonl` are."""
  sentences = ['The training loss is the loss that the phase minimises.']
  if 'heads' in results:
    sentences.append('For the heads, it is the sum of the cross-entropies of all heads.')
  if _validated(results):
    sentences.append('The validation loss (`val/loss` in `metrics.jsonl`) is the mean '
                     'cross-entropy on the validation images, for every phase.')
    if 'heads' in results:
      sentences.append('For the heads, validation loss and validation accuracy are means over the '
                       'heads.')
  return ' '.join(sentences)


def _compression_rows(results: Results) -> Iterator[list[str]]:
  """Yields a row for each cost that is known, then a row with the accuracy of each student."""
  def row(title: str, teacher: float, student: float, formatted: Callable) -> list[str]:
    ratio = f'{100 * student / teacher:.1f}' if teacher else '-'
    return [title, formatted(teacher), formatted(student), ratio]

  teacher, student = results['compression']['teacher'], results['compression']['student']
  for title, key, formatted in (
      ('parameters', 'parameters', '{:,}'.format),
      ('FLOPs of one image', 'flops', '{:,}'.format),
      ('bytes on disk', 'bytes', '{:,}'.format),
      ('latency of one image, ms', 'latency_ms', '{:.2f}'.format),
      (f'images per second, {_BATCH_SIZE} at once', 'images_per_second', '{:,.0f}'.format)):
    if None not in (teacher[key], student[key]):
      yield row(title, teacher[key], student[key], formatted)
  top1 = results['teacher']['test_best_val']['top1']
  best = ' (best val)' if _validated(results) else ''
  for name, result in results['student'].items():
    yield row(f'test top-1 %{best}, {name}', top1, result['test_best_val']['top1'], _percent)


def markdown_table(results: Results) -> str:
  """Returns the table of accuracies in Markdown.

  Args:
    results: what `write` returned.
  """
  return _markdown_table(_accuracy_cells(results))


def _markdown_table(cells: list[list[str]]) -> str:
  header, *rows = [[markdown_escaped(cell) for cell in row] for row in cells]
  return tabulate.tabulate(rows, header, tablefmt='pipe', disable_numparse=True,
                           colalign=_alignment(header))
