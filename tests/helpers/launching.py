"""What the tests of the launch scripts share: they run for real, against stand-ins on the PATH."""
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from tests.helpers.runs import ROOT

LAUNCH, STAND_INS = ROOT / 'launch', ROOT / 'tests/helpers/stand_ins'
AWKWARD = ['--config.note=it\'s "5 $HOME"', '--config.x=*;  `id`\\', '--config.y=é\nz', '']
SETTINGS = {'PROJECT': 'p', 'ZONE': 'z', 'ACCELERATOR': 'v5litepod-8'}


def put(folder: pathlib.Path, name: str, text: str) -> None:
  """Writes an executable."""
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(f'#!/bin/sh\n{text}\n')
  (folder / name).chmod(0o755)


def put_python(folder: pathlib.Path, name: str) -> None:
  """An executable that runs a stand-in."""
  put(folder, name, shlex.join(['exec', sys.executable, '-S', str(STAND_INS / f'{name}.py')])
      + ' "$@"')


def environment(tmp_path: pathlib.Path, **settings: str) -> dict[str, str]:
  """The stand-ins first on the PATH, a home of its own, no setting but `settings`."""
  return {'PATH': f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}', 'LANG': 'C.UTF-8',
          'HOME': str(tmp_path), **settings}


def run(script: pathlib.Path, *arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
  """Runs a script to its end."""
  return subprocess.run([str(script), *arguments], capture_output=True, text=True, timeout=120,
                        check=False, stdin=subprocess.DEVNULL, **kwargs)


def calls(path: pathlib.Path) -> list[list[str]]:
  """What was recorded, one argv in each line."""
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(true: Callable[[], bool]) -> None:
  """Waits for what must come; half a minute at most."""
  deadline = time.monotonic() + 30
  while not true():
    assert time.monotonic() < deadline
    time.sleep(0.02)


class Cloud:
  """A project of Google Cloud, and a working tree from which it is used."""

  def __init__(self, tmp_path: pathlib.Path):
    self.path, self.tree, self._tmp_path = tmp_path / 'cloud', tmp_path / 'tree', tmp_path
    self.path.mkdir()
    shutil.copytree(LAUNCH, self.tree / 'launch', ignore=shutil.ignore_patterns('results', 'colab'))
    (self.tree / '.gitignore').write_text('runs/\n')
    (self.tree / 'setup.py').write_text('old')
    for command in (['init', '--quiet'], ['add', '.']):
      subprocess.run(['git', *command], cwd=self.tree, check=True)
    put_python(tmp_path / 'bin', 'gcloud')
    shutil.copy(STAND_INS / 'uv', tmp_path / 'bin')

  def script(self, codes: dict[str, list[int]] | None = None, outcomes: list | None = None,
             workers: int = 1) -> None:
    """The exit codes of gcloud's next calls, how the runs end, and how many workers a VM has."""
    (self.path / 'codes.json').write_text(json.dumps(codes or {}))
    (self.path / 'outcomes.json').write_text(json.dumps(outcomes or []))
    (self.path / 'workers').write_text(str(workers))

  def do(self, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a launch script of the tree."""
    return run(self.tree / 'launch' / script, *arguments, env=environment(
        self._tmp_path, **SETTINGS, CLOUD=str(self.path), STAND_INS=str(STAND_INS),
        TEST_PYTHON=sys.executable, **settings))

  def vm(self, *arguments: str, **settings: str) -> str:
    """Runs tpu_vm.sh, which must succeed; what it prints."""
    done = self.do('tpu_vm.sh', *arguments, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout

  def calls(self) -> list[list[str]]:
    """Those of gcloud, less the words that all share."""
    shared = {'compute', 'tpus', 'tpu-vm', '--project=p', '--zone=z', '--quiet',
              '--ssh-flag=-o ConnectTimeout=30 -o ServerAliveInterval=30'}
    return [[word for word in call if word not in shared] for call in calls(self.path / 'calls')]

  def verbs(self) -> list[str]:
    """The calls in short, less those that only look."""
    short = []
    for verb, *words in self.calls():
      command = next((word for word in words if word.startswith('--command=')), verb)
      on_vm = [word for word in ('setup', 'start', 'stop', 'status') if f'.sh {word}' in command]
      short += [word for word in on_vm or [verb] if word not in ('status', 'describe', 'scp')]
    return short

  def started(self, worker: int = 0) -> list[list[str]]:
    """What Python was called with on a worker, run by run."""
    return calls(self.path / f'started.worker{worker}')

  def home(self, worker: int = 0) -> pathlib.Path:
    """Of a worker of the VM."""
    return self.path / 'kdih' / f'worker{worker}'
