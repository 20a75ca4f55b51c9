"""Stands in for srun: runs $TASKS tasks at once and returns the largest exit code, as srun does."""
import json
import os
import signal
import subprocess
import sys

argv = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: None)  # srun passes it on and waits.
with open(os.environ['CALLS'], 'a') as calls:
  calls.write(json.dumps(['srun', *argv]) + '\n')
command = argv[next(i for i, word in enumerate(argv) if not word.startswith('--')):]
tasks = [subprocess.Popen(command, env={**os.environ, 'SLURM_PROCID': str(number)})
         for number in range(int(os.environ['TASKS']))]
sys.exit(max(task.wait() % 256 for task in tasks))
