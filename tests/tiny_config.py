"""The smallest run of all three phases: a slice of digits, models of two convolutions."""
from kdih import config_lib


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, steps=6)
  config = config_lib.base()
  config.log_every_steps = 2
  config.data.update(name='digits', train_split='train[:200]', test_split='test[:50]', padding=1,
                     flip=False, validation_fraction=0.2, eval_global_batch_size=32)
  config.teacher.name = 'tiny_nets:TinyNet'
  config.student.name = 'tiny_nets:TinyNet'
  config.student.kwargs.width = 2
  for fields in (config.teacher.train, config.heads.train, config.student.train,
                 config.student.prepare):
    fields.update(unit='steps', length=float(arg.steps), evaluate_every=2.0, milestones=(4.0,),
                  global_batch_size=32)
  config.methods.takd.chain = ('tiny_nets:TinyNet', 'student')
  config.methods.crd.update(negatives=16, width=8)
  return config
