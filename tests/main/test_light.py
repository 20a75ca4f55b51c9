"""Programs start quickly: what takes seconds to import is imported once the settings are read."""
import subprocess
import sys

import pytest

# Runs the help of a program, whose exit code is checked, and prints what was imported for it.
HELP = """
import runpy, sys
sys.argv = ['kdih', '--help']
try:
  runpy.run_module('{module}', run_name='__main__')
except SystemExit as ended:
  assert not ended.code
heavy = ('jax', 'tensorflow', 'tensorflow_datasets', 'flax', 'orbax', 'clu', 'matplotlib', 'torch')
print('imported:', *sorted(set(heavy) & sys.modules.keys()))
"""


@pytest.mark.parametrize('module', ['kdih.main', 'kdih.sweep', 'kdih.report', 'kdih.benchmark'])
def test_help_imports_neither_jax_nor_tensorflow(module):
  done = subprocess.run([sys.executable, '-c', HELP.format(module=module)], capture_output=True,
                        text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert f'python -m {module}' in done.stdout
  assert not [line for line in done.stdout.splitlines() if 6 * ' ' + '--' in line.lstrip()]
  assert done.stdout.splitlines()[-1] == 'imported:'
