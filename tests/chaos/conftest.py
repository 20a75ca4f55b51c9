"""A process of its own for what cannot be undone."""
import json
import os

import pytest


@pytest.fixture
def in_a_child():
  """A function that returns what another one returns, which runs in a child.

  What stays in a process stays there: hooks, limits, handlers. JSON must be able to hold the value.
  """
  def call(function):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
      try:
        os.write(writing, json.dumps(function()).encode())
      finally:
        os._exit(0)  # pytest goes on in the parent alone.
    os.close(writing)
    with open(reading, 'rb') as pipe:
      text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)

  return call
