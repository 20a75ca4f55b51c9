"""Stands in for `gcloud compute tpus tpu-vm`: a VM is a folder, with a home for each worker.

In the folder $CLOUD: `calls` (each argv), `codes.json` ({verb: exit codes of its next calls}),
`workers` (how many a new VM has), and for each VM `<name>/state` and `<name>/worker<i>`.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys

CLOUD = pathlib.Path(os.environ['CLOUD'])


def failure(verb: str) -> int:
  """The scripted exit code of this call."""
  path = CLOUD / 'codes.json'
  codes = json.loads(path.read_text()) if path.exists() else {}
  code = codes.get(verb, [0]).pop(0) if codes.get(verb) else 0
  path.write_text(json.dumps(codes))
  return code


def complain(verb: str, text: str) -> int:
  print(f'ERROR: (gcloud.compute.tpus.tpu-vm.{verb}) {text}', file=sys.stderr)
  return 1


def create(vm: pathlib.Path) -> None:
  count = CLOUD / 'workers'
  for number in range(int(count.read_text()) if count.exists() else 1):
    (vm / f'worker{number}').mkdir(parents=True)
  (vm / 'state').write_text('READY')


def chosen(vm: pathlib.Path, flags: dict[str, str]) -> list[pathlib.Path]:
  homes = sorted(vm.glob('worker*'))
  return homes if flags['--worker'] == 'all' else [homes[int(flags['--worker'])]]


def ssh(vm: pathlib.Path, flags: dict[str, str]) -> int:
  """Runs the command as each worker; the code of the first that fails, as gcloud's."""
  codes = [subprocess.run(['bash', '-c', flags['--command']], cwd=home, check=False,
                          env={**os.environ, 'HOME': str(home), 'HOSTNAME': home.name}).returncode
           for home in chosen(vm, flags)]
  return next((code for code in codes if code), 0)


def main(argv: list[str]) -> int:
  with (CLOUD / 'calls').open('a') as calls:
    calls.write(json.dumps(argv) + '\n')
  verb, *rest = argv[3:]
  names = [word for word in rest if not word.startswith('--')]
  flags = dict(word.partition('=')[::2] for word in rest if word.startswith('--'))
  vm = CLOUD / names[-1].partition(':')[0]
  if code := failure(verb):
    complain(verb, 'UNAVAILABLE: as the test wants it')
    return code
  if verb == 'create' and vm.exists():
    return complain(verb, 'ALREADY_EXISTS')
  if verb == 'create':
    create(vm)
  elif not vm.exists():
    return complain(verb, f"NOT_FOUND: Resource 'projects/p/locations/z/nodes/{vm.name}'")
  elif verb == 'describe':
    print((vm / 'state').read_text())
  elif verb == 'delete':
    shutil.rmtree(vm)
  elif (vm / 'state').read_text() != 'READY':
    return complain(verb, 'this TPU is in an unusable state')
  elif verb == 'scp':
    for home in chosen(vm, flags):
      shutil.copy(names[0], home / names[1].partition(':')[2])
  elif verb == 'ssh':
    return ssh(vm, flags)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
