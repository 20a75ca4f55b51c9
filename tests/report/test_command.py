"""`python -m kdih.report`: its files, its page, broken workdirs, and errors."""
import base64
import contextlib
import csv
import html.parser
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from kdih.report import __main__ as report, findings, tables
from kdih.report.aggregate import compare
from kdih.report.collect import collect
from tests.helpers.made_pairs import heads as analysed_heads
from tests.helpers.made_results import read_png, result
from tests.helpers.made_workdirs import manifest, single, student, swept, write
from tests.helpers.runs import ROOT

PICTURES = ('agreement', 'cost', 'gains', 'members', 'without')
# Names that would be code in one of the files. A method is a folder, a model a line of a manifest.
METHOD = '<script>alert("\'")<script> & [x](y) $%#_{}~^`|*'
DATA, STUDENT = '../../x"><img src=http://evil.example/x>', '../..\\up'


def run(*argv) -> tuple[int, str]:
  """The exit code and the printed text."""
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    code = report.main(['kdih.report', *map(str, argv)])
  return code, printed.getvalue()


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes()
          for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def sweep(tmp_path_factory) -> pathlib.Path:
  """A sweep of hostile names: ce 60 and 61, kd 62 and 64, dih 65 and 65, over seeds 1 and 2."""
  workdir = tmp_path_factory.mktemp('swept') / 'sweep'
  names = {'data.name': DATA, 'student.name': STUDENT}
  swept(workdir, METHOD, seeds=(1, 2), **names)
  home = workdir / 'resnet110'
  write(home / 'teacher/result.json', result(0.75, fingerprint='t', flops=10**8))
  write(home / 'heads/result.json', {**result(0.76), **analysed_heads(4)})
  for method, accuracies in {'ce': (60, 61), 'kd': (62, 64), 'dih': (65, 65)}.items():
    for seed, top1 in zip((1, 2), accuracies, strict=True):
      student(home / f'resnet8/seed{seed}', method, (top1 + 1) / 100, seed, flops=10**7)
  return workdir


@pytest.fixture(scope='module')
def reported(sweep) -> dict[str, bytes]:
  """The files that the report adds, in and beside a sweep of which nothing is missing."""
  before = contents(sweep.parent)
  code, printed = run(sweep)
  assert code == 0 and 'What is missing' not in printed
  after = contents(sweep.parent)
  assert {name: after[name] for name in before} == before
  return {name: content for name, content in after.items() if name not in before}


def test_the_files_of_a_report_stand_in_its_folder_whatever_the_names(reported):
  files = {'index.html', 'report.md', 'results.csv', 'runs.csv', 'tables.tex'}
  folder = 'sweep/comparison/'
  assert {name for name in reported if '/pictures/' not in name} == {folder + f for f in files}
  pictures = [name.removeprefix(f'{folder}pictures/') for name in reported if '/pictures/' in name]
  assert sorted(re.match(r'([a-z]+)_[\w.-]+\.(png|svg)$', name).groups() for name in pictures) == [
      (kind, suffix) for kind in PICTURES for suffix in ('png', 'svg')]


def test_the_pictures_can_be_read_and_need_no_other_file(reported):
  for name, content in reported.items():
    if name.endswith('.png'):
      assert read_png(io.BytesIO(content)).min() < 0.5
    if name.endswith('.svg'):
      tree = xml.etree.ElementTree.fromstring(content)
      links = {value for element in tree.iter() for key, value in element.attrib.items()
               if key.endswith(('href', 'src'))}
      assert links and {link[0] for link in links if not link.startswith('data:')} == {'#'}


def test_a_second_report_has_identical_bytes(sweep, reported):
  assert run(sweep)[0] == 0
  after = contents(sweep.parent)
  assert {name: after[name] for name in reported} == reported


class Page(html.parser.HTMLParser):
  """The elements and texts of a page.

  Attributes:
    tags: names of elements.
    links: all that refers to something else.
    cells: texts of the cells of tables.
    text: of everything.
  """

  def __init__(self, content: bytes):
    super().__init__()
    self.tags, self.links, self.cells, self.text = set(), [], [], ''
    self.feed(content.decode())

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.links += [value for name, value in attrs if name in (
        'src', 'href', 'srcset', 'action', 'data', 'style') or name.startswith('on')]
    if tag in ('td', 'th'):
      self.cells.append('')

  def handle_data(self, data):
    self.text += data
    if self.lasttag in ('td', 'th') and self.cells and not self.cells[-1]:
      self.cells[-1] = data.strip()


def pairs_of(sweep):
  return compare(collect([sweep])[0])[0]


def test_the_page_holds_everything_and_refers_to_nothing(sweep, reported):
  page = Page(reported['sweep/comparison/index.html'])
  assert page.tags <= {'html', 'head', 'meta', 'title', 'style', 'body', 'h1', 'h2', 'p', 'div',
                       'table', 'thead', 'tbody', 'tr', 'th', 'td', 'figure', 'img', 'figcaption',
                       'strong', 'ul', 'li', 'code'}
  start = 'data:image/svg+xml;base64,'
  assert {link[:len(start)] for link in page.links} == {start}
  assert ({base64.b64decode(link[len(start):]) for link in page.links}
          == {content for name, content in reported.items() if name.endswith('.svg')})
  style = re.search(r'<style>(.*?)</style>', reported['sweep/comparison/index.html'].decode(), re.S)
  assert not re.search(r'url\(|@import', style[1])
  (pair,) = pairs_of(sweep)
  assert page.cells == [cell for row in tables.cells(pair) for cell in row]
  assert METHOD in page.cells and f'{DATA}: resnet110 → {STUDENT}' in page.text
  assert all(sentence in page.text for sentence in findings.findings(pair))


def test_the_template_of_the_page_is_installed(tmp_path):
  build = [sys.executable, 'setup.py', '--quiet', 'build_py', f'--build-lib={tmp_path}']
  subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
  template = 'kdih/report/templates/page.html.jinja'
  assert (tmp_path / template).read_text() == (ROOT / template).read_text()


def test_markdown_holds_everything_and_no_name_is_code_in_it(sweep, reported):
  text = reported['sweep/comparison/report.md'].decode()
  (pair,) = pairs_of(sweep)
  assert tables.markdown(pair) in text
  linked = set(re.findall(r'!\[[^\]]+\]\((pictures/[^)]+)\)', text))
  assert {f'sweep/comparison/{name}' for name in linked} == {
      name for name in reported if name.endswith('.png')}
  assert not re.search(r'(?<!\\)[<`]', text)
  assert re.findall(r'(?<!\\)\[', text) == ['['] * len(PICTURES)


def test_the_numbers_of_the_csv_files(reported):
  rows = {row['method']: row for row in csv.DictReader(
      io.StringIO(reported['sweep/comparison/results.csv'].decode()))}
  assert list(rows) == ['ce', 'kd', 'dih', METHOD]
  dih = {name: float(rows['dih'][name]) for name in (
      'top1_last_mean', 'top1_last_std', 'gain_over_kd', 'gain_over_kd_standard_error')}
  assert dih == pytest.approx({  # 65 - 62 and 65 - 64.
      'top1_last_mean': 65, 'top1_last_std': 0, 'gain_over_kd': 2,
      'gain_over_kd_standard_error': 1}, abs=1e-9)
  runs = list(csv.DictReader(io.StringIO(reported['sweep/comparison/runs.csv'].decode())))
  assert [(run['method'], run['seed']) for run in runs] == [
      (method, seed) for seed in '12' for method in (METHOD, 'ce', 'dih', 'kd')]
  assert {float(run['test_last_top1']) for run in runs if run['method'] == 'kd'} == {62, 64}


def test_the_latex_file_names_its_packages_and_holds_the_table(sweep, reported):
  first, rest = reported['sweep/comparison/tables.tex'].decode().split('\n', 1)
  assert first == r'% Needs \usepackage{array, booktabs}.'
  assert rest == tables.latex(*pairs_of(sweep)) + '\n'


# Problems are reported, and all other runs are compared.


def test_the_unfinished_the_failed_the_mixed_and_the_corrupt_are_named(tmp_path):
  workdir = swept(tmp_path / 's', 'ce', 'kd', seeds=(1, 2))
  one, two = (workdir / f'resnet110/resnet8/seed{seed}' for seed in (1, 2))
  (one / 'student/at/checkpoints').mkdir(parents=True)
  write(one / 'student/sp/failure.json', {'error': 'TrainingError: loss is nan'})
  write(one / 'student/cc/result.json', '{"test_last": {"top1"')
  write(one / 'student/vid/result.json', result(float('nan'), seed=1, method=dict(kind='vid')))
  write(one / 'student/rkd/result.json', {'seed': 1})
  write(workdir / 'resnet110/heads/result.json', {'analysis': 3})
  manifest(two, 2, **{'student.train.length': 7.0})
  code, printed = run(workdir)
  assert code == 0
  written = contents(workdir / 'comparison')
  page = Page(written['index.html']).text
  for said in ('seed1/student/at: is not finished', 'seed1/student/sp: failed: TrainingError',
               'cc/result.json is damaged (Input data was truncated)',
               'vid/result.json is damaged (JSON is malformed: invalid character',
               'rkd/result.json is damaged (Object missing required field',
               'pictures of this cohort are left',
               'under 2 protocols are not compared with each other; they differ in '
               'student.train.length'):
    assert said in printed and said in page and said in written['report.md'].decode()
  rows = list(csv.DictReader(io.StringIO(written['results.csv'].decode())))
  assert [(row['method'], row['seeds']) for row in rows] == [
      ('ce', '1'), ('kd', '1'), ('ce', '2'), ('kd', '2')]
  assert 'cifar100: resnet110 → resnet8 (protocol 2 of 2)' in page


def test_several_folders_are_reported_together(tmp_path):
  single(tmp_path / 'a', 'ce', seed=1)
  single(tmp_path / 'b', 'kd', seed=1)
  (tmp_path / 'b/heads/result.json').unlink()
  code, _ = run(tmp_path / 'a', f'--output={tmp_path}/new/out', tmp_path / 'b')
  assert code == 0
  rows = csv.DictReader((tmp_path / 'new/out/results.csv').open())
  assert [row['method'] for row in rows] == ['ce', 'kd']


# Errors.


@pytest.fixture
def folders(tmp_path, monkeypatch) -> pathlib.Path:
  """Below the working folder: `w` with a run, `v` with another, `empty`, and `file`."""
  for name in 'wv':
    single(tmp_path / name, 'ce')
    write(tmp_path / name / 'report.md', 'of the run')
  write(tmp_path / 'w/pictures/pictures', 'mine')
  (tmp_path / 'empty').mkdir()
  write(tmp_path / 'file', 'text')
  for name, content in {'broken': '{"teacher"', 'list': '[]', 'other': {}, 'text': '"x"',
                        'deep': {'teacher': {'val': 3}},
                        'null': {'teacher': None, 'student': None, 'heads': None}}.items():
    write(tmp_path / f'{name}.json', content)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize('argv, expected', [
    ([], 'no runs are given; write for example python -m kdih.report runs/sweep'),
    (['--outptu=x', 'w'], "'--outptu=x' is not a flag; there is --output=FOLDER"),
    (['w', '--out=x'], "'--out=x' is not a flag; there is --output=FOLDER"),
    (['w', '--output'], 'argument --output: expected one argument; such as --output='),
    (['w', 'v'], '--output: is not set'),
    ([''], 'WORKDIR: is empty; name a folder'), (['w', ''], 'WORKDIR: is empty; name a folder'),
    (['w', '--output='], '--output: is empty; name a folder'),
    (['w', '--output=a\0b'], "--output: 'a\ufffdb' has a null character"),
    (['a\0b', '--output=x'], 'a\ufffdb: no finished student to compare'),
    (['w', '--output=w/pictures'], '--output: w/pictures/pictures is a file; choose a folder'),
    (['v', '--output=w/teacher'], '--output: /'),
    (['no'], 'no: there is no such folder'),
    (['no', '--output=x'], 'no: no finished student to compare; no: there is no such folder'),
    (['file'], 'file: there is no such folder'),
    (['empty'], 'empty: no finished student to compare; empty: holds no student'),
    (['w', '--output=file'], '--output: file is a file; choose a folder'),
    (['w', '--output=file/x'], '--output: /'),
    (['w', f'--output={"x" * 256}'],
     f'--output: {"x" * 256} cannot be opened (File name too long); choose another folder'),
    (['w', f'--output={"x/" * 2044}y'], '--output: x/'),
    (['x' * 256], f'{"x" * 256}: there is no such folder'),
    (['x' * 256, '--output=x'], f'{"x" * 256}: no finished student to compare; '),
    ([f'{"x" * 256}.json'], f'{"x" * 256}.json: holds no results'),
    (['w', '--output=w'],
     '--output: w/report.md is not part of a comparison and would be overwritten'),
    (['no.json'], 'no.json: holds no results'), (['other.json'], 'other.json: holds no results'),
    (['broken.json'], 'broken.json is damaged (Input data was truncated); restore it'),
    (['list.json'], 'list.json is damaged (Expected `object`, got `array`)'),
    (['text.json'], 'text.json is damaged (Expected `object`, got `str`)'),
    (['deep.json'],
     'deep.json is damaged (Expected `object | null`, got `int` - at `$.teacher.val`)'),
    (['null.json'], 'null.json is damaged (Expected `object`, got `null` - at `$.teacher`)'),
])
def test_a_bad_command_ends_in_one_line_and_writes_nothing(folders, capsys, argv, expected):
  before = contents(folders), sorted(folders.rglob('*'))
  assert report.main(['kdih.report', *argv]) == 2
  out, error = capsys.readouterr()
  assert error.startswith(f'kdih: {expected}') and error.count('\n') == 1 and out == ''
  assert (contents(folders), sorted(folders.rglob('*'))) == before


NOT_OURS = ('is not part of a comparison and would be overwritten; remove it, or choose another '
            'folder')


@pytest.mark.parametrize(('make', 'said'), [
    (lambda path: write(path, '# Another report'), NOT_OURS),
    (lambda path: (path.touch(), os.truncate(path, 2**36)), NOT_OURS),
    (os.mkfifo, 'is neither a file nor a folder; remove it, or choose another folder'),
    (os.mkdir, 'is a folder, and a file would be written in its place; remove it, or choose '
     'another folder')])
def test_what_is_no_comparison_is_not_overwritten_nor_read_to_its_end(
    folders, capsys, make, said):
  (folders / 'w' / 'comparison').mkdir()
  make(folders / 'w' / 'comparison' / 'report.md')
  assert report.main(['kdih.report', 'w']) == 2
  assert capsys.readouterr().err == (
      f'kdih: --output: w/comparison/report.md {said}\n')


@pytest.mark.parametrize('name', ['results.csv', 'runs.csv', 'tables.tex', 'pictures/mine.png'])
def test_files_of_others_are_not_overwritten(folders, capsys, name):
  write(folders / 'paper' / 'notes.txt', 'mine')
  write(folders / 'paper' / name, 'mine')
  before = contents(folders)
  assert report.main(['kdih.report', 'w', '--output=paper']) == 2
  assert capsys.readouterr().err == (
      f'kdih: --output: paper/{name.split("/")[0]} is not part of a comparison and would be '
      'overwritten; remove it, or choose another folder\n')
  assert contents(folders) == before


def test_a_report_that_was_stopped_is_made_anew_beside_other_files(folders, monkeypatch):
  write(folders / 'paper' / 'notes.txt', 'mine')
  with monkeypatch.context() as patch:
    patch.setattr(tables, 'csv_of_runs', lambda runs: 1 / 0)
    with contextlib.suppress(ZeroDivisionError):
      run('w', '--output=paper')
  assert any((folders / 'paper' / 'pictures').iterdir())
  assert not (folders / 'paper' / 'index.html').exists()
  assert run('w', '--output=paper')[0] == 0
  assert (folders / 'paper' / 'notes.txt').read_text() == 'mine'


def test_runs_that_cannot_be_compared_are_explained(folders, capsys):
  shutil.rmtree(folders / 'w/teacher')
  write(folders / 'w/student/ce/result.json', '{')
  assert report.main(['kdih.report', 'w']) == 2
  error = capsys.readouterr().err
  assert 'w/student/ce/result.json is damaged (Input data was truncated)' in error
  assert error.count('\n') == 1
  assert not (folders / 'w/comparison').exists()


def test_the_table_of_a_run_is_printed(folders, capsys):
  write(folders / 'results.json', {'student': {'ce': result(0.625)}})
  assert report.main(['kdih.report', 'results.json']) == 0
  assert re.search(r'\| student ce +\| +61\.50 \| +62\.50 \|', capsys.readouterr().out)


def test_the_table_of_a_run_holds_names_as_text(folders, capsys):
  write(folders / 'results.json', {'student': {'\x1b[31m<b>|\n# H': result(0.625)}})
  assert report.main(['kdih.report', 'results.json']) == 0
  assert '| student \ufffd\\[31m\\<b>\\| # H |' in capsys.readouterr().out


def test_sentences_in_markdown_hold_names_as_text(tmp_path):
  manifest(tmp_path)
  for name in ('<b>', '<i>'):
    student(tmp_path, name)
  for path in tmp_path.glob('student/*/result.json'):
    write(path, result(0.6, method=dict(kind='ce'), parts={}))
  assert run(tmp_path)[0] == 0
  text = (tmp_path / 'comparison' / 'report.md').read_text()
  assert 'variants of \\<b>, \\<' in text and not re.search(r'(?<!\\)<', text)


def test_help(capsys):
  assert report.main(['kdih.report', '--help']) == 0
  out = capsys.readouterr().out
  assert 'python -m kdih.report WORKDIR… [--output=FOLDER]' in out
  assert re.search('^WORKDIR +the folder of a run', out, re.M)
  assert re.search('^--output=FOLDER +the folder for report.md', out, re.M)


def test_the_table_in_the_results_is_that_of_the_committed_sweep():
  root = ROOT
  runs, problems = collect([root / 'launch/results/cifar100_sweep'])
  [pair], more = compare(runs)
  assert problems == [] and more == []
  table = tables.markdown(pair)
  readme = (root / 'launch/results/README.md').read_text(encoding='utf-8')
  path = 'launch/results/cifar100_sweep/comparison/report.md'
  assert f'<!-- {path} -->\n{table}\n<!-- end -->' in readme
  assert table in (root / path).read_text(encoding='utf-8')
