"""The documents: their links, settings and commands exist, and the examples of the code run."""
import functools
import importlib
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors, main, methods
from kdih.cohort import head_modules
from kdih.config import checks, fields, flags, method_presets, recipes
from kdih.data import datasets
from kdih.data.spec import DataSpec
from kdih.distillation.method import Context
from kdih.models import registry
from kdih.phases import networks
from kdih.report import tables
from kdih.report.aggregate import compare
from kdih.report.collect import collect
from kdih.runtime import run_files
from kdih.sweep import __main__ as sweep
from tests.helpers import lessons
from tests.helpers.runs import ROOT, read_config

CODE = ROOT / 'kdih/README.md'
LINK = re.compile(r'\]\(([^)\s]+)\)')
SETTING = re.compile(r'--(?:no)?config\.([\w.]+)')
BLOCK = re.compile(
    r'(?:<!-- (\w+)(?:: (\S+))? -->\n)?```(\w+)\n(.*?)^```', re.MULTILINE | re.DOTALL)


def tracked(pattern: str = '') -> list[pathlib.Path]:
  """Returns the files that git tracks or would track."""
  listed = subprocess.run(
      ['git', 'ls-files', '--cached', '--others', '--exclude-standard', *pattern.split()],
      cwd=ROOT, capture_output=True, text=True, check=True)
  return [ROOT / line for line in listed.stdout.splitlines()]


DOCUMENTS = tracked('*.md *.ipynb')
MARKDOWN = [path for path in DOCUMENTS if path.suffix == '.md']  # Links of notebooks are absolute.


def each(paths: list[pathlib.Path]):
  """A decorator: runs a test for each of these documents."""
  return pytest.mark.parametrize('path', paths, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(text: str) -> set[str]:
  """Returns what a link to a heading may be called, as GitHub does it."""
  headings = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@each(MARKDOWN)
def test_every_relative_link_points_to_a_tracked_file_and_a_heading(path):
  files = set(tracked())
  folders = {folder for file in files for folder in file.parents}
  for target in LINK.findall(path.read_text(encoding='utf-8')):
    if re.match(r'\w+://', target):
      continue
    name, _, anchor = target.partition('#')
    file = pathlib.Path(os.path.normpath(path.parent / name)) if name else path
    assert file in files | folders, target
    if anchor:
      assert anchor in anchors(file.read_text(encoding='utf-8')), target


@each(DOCUMENTS)
def test_every_setting_that_is_named_is_a_field(path):
  groups = {name[:i] for name in fields.FIELDS for i, char in enumerate(name) if char == '.'}
  for name in SETTING.findall(path.read_text(encoding='utf-8')):
    name = name.rstrip('.')
    if not re.match(r'(teacher|student)\.kwargs\.|methods\.', name):
      assert name in fields.FIELDS or name in groups, name
    elif (entry := name.split('.'))[0] == 'methods' and entry[1] in method_presets.methods('paper'):
      options = method_presets.methods('paper')[entry[1]]
      assert entry[2] in {**options, 'learning_rate': 0}, name


@each(DOCUMENTS)
def test_every_module_config_and_script_that_a_command_names_exists(path):
  text = path.read_text(encoding='utf-8')
  for name in re.findall(r'python3? -m ((?:kdih|launch)[\w.]*)', text):
    assert importlib.util.find_spec(name), name
  for name in re.findall(r'(?<![\w/.])(?:configs|launch)/[\w/]+\.(?:py|sh)', text):
    assert (ROOT / name).is_file(), name
  for name in re.findall(r'`(dih\w*|kd_\w+)`', text):
    assert name in method_presets.methods('paper'), name


def command_lines(path: pathlib.Path) -> list[list[str]]:
  """Returns the words of each command of kdih in the shell blocks without a label."""
  found = []
  for block in BLOCK.finditer(path.read_text(encoding='utf-8')):
    if block[1] is None and block[3] in ('sh', 'python'):
      for line in block[4].replace('\\\n', ' ').splitlines():
        if command := re.search(r'-m (kdih\.(?:main|sweep) .*)', line):
          found.append(shlex.split(command[1], comments=True))
  return found


@each([path for path in MARKDOWN if command_lines(path)])
def test_every_command_passes_the_checks_of_its_settings(path):
  for name, *given in command_lines(path):
    short = main._SHORT if name == 'kdih.main' else sweep._SHORT
    given = [word.replace('=configs/', f'={ROOT}/configs/') for word in given]
    if any(word.startswith('--config=') for word in given):
      checks.check(flags.read([name, *given], short)[0])


def test_the_readme_is_one_page():
  assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) < 200


def test_the_readme_lists_every_method():
  """But for variants that differ in one option from another that is listed."""
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  listed = set(re.findall(r'`(\w+)`', text.partition('## Methods')[2].partition('\n## ')[0]))
  assert set(method_presets.methods('paper')) - listed == {'fitnets_one'}


def test_the_code_lists_every_model():
  assert set(registry.names()) <= set(re.findall(r'\w+', CODE.read_text(encoding='utf-8')))


def test_the_gains_in_the_readme_are_those_of_the_committed_sweep():
  runs, _ = collect([ROOT / 'launch/results/cifar100_sweep'])
  [pair], _ = compare(runs)
  row = next(line for line in tables.markdown(pair).splitlines() if line.startswith('| dih '))
  _, over_kd, over_matched = re.findall(r'[+−][\d.]+ ± [\d.]+', row)
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  assert f'{over_kd} points over `kd`' in text.replace('\n', ' ')
  assert 'Over `kd_matched`' in text and f'the gain is {over_matched}' in text.replace('\n', ' ')


def test_the_table_of_students_apart_is_that_of_its_file():
  path = 'launch/results/same_student.json'
  rows = []
  for steps, students in run_files.read(ROOT / path, dict)['steps'].items():
    for name, student in students.items():
      loss, weights = '', ''
      if 'kernels_apart' in student:
        least, most = (100 * apart for apart in student['kernels_apart'])
        loss, weights = f'{student["first_loss_apart"]:.0g}', f'{least:.0f} to {most:.0f} %'
      shown = name if ' ' in name else f'`{name}`'
      rows.append(f'| {steps} | {shown} | {loss} | {weights} | {100 * student["test_top1"]:.1f} |')
  table = '\n'.join(rows)
  text = (ROOT / 'launch/studies/speed.md').read_text(encoding='utf-8')
  assert f'\n{table}\n<!-- end -->' in text.partition(f'<!-- {path} -->')[2]


def blocks(label: str) -> list[tuple[str, str]]:
  """Returns (argument, code) of the blocks of the code's README that have a label."""
  return [(found[2] or '', found[4]) for found in BLOCK.finditer(CODE.read_text(encoding='utf-8'))
          if found[1] == label]


@pytest.fixture
def written(tmp_path, monkeypatch):
  """The folder with the files of the examples, which can be imported as the README describes."""
  for name, content in blocks('file'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(methods, '__path__', [*methods.__path__, str(tmp_path / 'kdih/methods')])
  importlib.invalidate_caches()
  yield tmp_path
  sys.modules.pop('kdih.methods.logits_mse', None)


def commands() -> list[str]:
  return [code.replace('\\\n', ' ') for _, code in blocks('run')]


def test_the_examples_are_three_files_and_three_commands():
  assert [name for name, _ in blocks('file')] == [
      'kdih/methods/logits_mse.py', 'my_nets.py', 'kdih/data/stripes.py']
  assert len(commands()) == 3


def test_the_method_of_the_example_is_its_formula(written):
  overrides = [word for word in commands()[0].split() if word.startswith('--config.')]
  built = networks.build(read_config('unused', 'unused', *overrides),
                         DataSpec('arrays', (8, 8, 1), 10))
  assert set(built.cached_signals) == {'kd', 'mine'}
  lesson = lessons.lesson()
  terms = built.methods['mine'].apply({}, lesson)
  z, t = (np.asarray(output.logits, np.float64) for output in (lesson.student, lesson.teacher))
  ce = np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), lessons.LABELS]
  np.testing.assert_allclose(terms['ce'], 0.5 * ce, rtol=1e-5)
  np.testing.assert_allclose(terms['mse'], 0.25 * ((z - t)**2).mean(-1), rtol=1e-5)
  with pytest.raises(errors.ConfigError, match='config.methods.mine.alpha: '):
    methods.create('mine', {'kind': 'logits_mse', 'alpha': 2.0}, Context())


@functools.cache
def register_stripes() -> None:
  """Imports the data set of the example, which TFDS allows once in a process."""
  content = dict(blocks('file'))['kdih/data/stripes.py']
  path = pathlib.Path(tempfile.mkdtemp()) / 'stripes.py'
  path.write_text(content)
  spec = importlib.util.spec_from_file_location('kdih.data.stripes', path)
  sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # TFDS looks for it there.
  spec.loader.exec_module(sys.modules[spec.name])


def test_the_data_set_of_the_example_is_found_by_its_name(digits_dir):
  register_stripes()
  config = read_config('unused', digits_dir, '--config.data.name=stripes')
  spec = datasets.describe(datasets.open_builder(config.data), config.data)
  assert spec.classes == ('horizontal', 'vertical') and spec.image_shape == (8, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1, 2])
def test_the_commands_of_the_examples_run(written, number, digits_dir, monkeypatch, capsys):
  register_stripes()
  monkeypatch.chdir(written)
  words = commands()[number].split()
  assert words[:3] == ['python', '-m', 'kdih.main']
  config = words[3].replace('configs/', f'{ROOT}/configs/')
  code = main.main(['kdih', config, *words[4:], f'--config.data.data_dir={digits_dir}'])
  assert code == 0, capsys.readouterr().err


def test_the_recipe_of_the_example_can_be_chosen(monkeypatch):
  (_, code), = blocks('recipe')
  for name, recipe in eval(f'{{{code}}}').items():
    monkeypatch.setitem(recipes.RECIPES, name, recipe)
  config = fields.base('short')
  assert config.student.train.length == 30 and config.methods.kd.alpha == 0.5


def test_the_head_of_the_example_takes_the_maximum(monkeypatch):
  (_, code), = blocks('head')
  source = pathlib.Path(head_modules.__file__).read_text(encoding='utf-8')
  changed, count = re.subn(r'^      else:\n', textwrap.indent(code, ' ' * 6) + '      else:\n',
                           source, flags=re.MULTILINE)
  assert count == 1
  namespace = {'__name__': head_modules.__name__}
  exec(compile(changed, 'head_modules', 'exec'), namespace)
  feature = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 4)), jnp.float32)
  heads = namespace['Heads'](5, 'max')
  logits, variables = heads.init_with_output(jax.random.key(0), {'stage1': feature})
  dense = variables['params']['stage1']
  expected = feature.max((1, 2)) @ dense['kernel'] + dense['bias'][None]
  np.testing.assert_allclose(logits['stage1'], expected, rtol=1e-5, atol=1e-6)
