"""What the config may name is what there is in the wings above."""
from kdih.config import choices
from kdih.data import augment, loaders


def test_there_is_a_loader_and_a_padding_for_every_name():
  assert tuple(loaders.LOADERS) == choices.LOADERS
  assert tuple(augment.PAD_MODES) == choices.PADDING_MODES
