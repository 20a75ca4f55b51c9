"""The smallest run of all three phases: a slice of digits, models of two convolutions."""
from kdih.config import arguments, fields


def get_config(arg=None):
  arg = arguments.parse_arg(arg, steps=6)
  config = fields.base()
  config.log_every_steps = 2
  config.data.update(name='digits', train_split='train[:200]', test_split='test[:50]', padding=1,
                     flip=False, validation_fraction=0.2, eval_global_batch_size=32)
  config.teacher.name = 'tests.helpers.tiny_nets:TinyNet'
  config.student.name = 'tests.helpers.tiny_nets:TinyNet'
  config.student.kwargs.width = 2
  for train in (config.teacher.train, config.heads.train, config.student.train,
                config.student.prepare):
    train.update(unit='steps', length=float(arg.steps), evaluate_every=2.0, milestones=(4.0,),
                 global_batch_size=32)
  config.methods.takd.chain = ('tests.helpers.tiny_nets:TinyNet', 'student')
  config.methods.crd.update(negatives=16, width=8)
  return config
