"""What is shown of a phase while it trains."""
import json

import numpy as np
import pytest

from kdih.training.loop_schedule import LoopSchedule
from kdih.training.monitor import Monitor

SCHEDULE = LoopSchedule(phase='heads', total_steps=4, evaluate_every=4, log_every=2, batch_size=8,
                        steps_per_epoch=2.0, max_rewinds=0, per_call=2)


@pytest.mark.parametrize('count, shown', [(1, 0), (2, 2), (6, 6), (7, 0)])
def test_a_line_shows_the_terms_of_a_loss_unless_they_are_too_many(tmp_path, capsys, count, shown):
  terms = {f'ce/stage{number}': np.full(2, number, np.float32) for number in range(count)}
  monitor = Monitor(SCHEDULE, {}, 0, tmp_path, events=False)
  monitor.record(2, {'top1': np.full(2, 0.5), **terms, 'loss': np.float32([1, 3])})
  monitor.settle(2)
  monitor.close()
  lines = capsys.readouterr().err.splitlines()
  text = ''.join(f' ce/stage{number} {number:.4f}' for number in range(shown))
  assert f'heads: epoch 0.5/2.0 loss 1.0000{text} top1 0.5000' in lines[0]
  assert f'heads: epoch 1.0/2.0 loss 3.0000{text} top1 0.5000' in lines[1]
  for line in (tmp_path / 'metrics.jsonl').read_text().splitlines():  # All of them, always.
    assert {f'train/{name}' for name in terms} < json.loads(line).keys()
