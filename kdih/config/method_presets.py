"""The predefined entries of `config.methods`: ways to teach the student, with their options.

Any entry may have a `learning_rate`. Its students then train at this learning rate instead of that
of `config.student.train`.
"""
import json
import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdih.config import recipes

if TYPE_CHECKING:
  import ml_collections


def methods(recipe: str) -> dict[str, dict[str, Any]]:
  """Returns {name: entry}; the `kind` of an entry is a file of kdih.methods, with its options."""
  weighting = recipes.get(recipe)['logits']
  paper, repdistiller = (recipes.RECIPES[name]['logits'] for name in ('paper', 'repdistiller'))
  # Several entries are variants of these three.
  kd = dict(kind='kd', **weighting, scale='one', gain=1.0, standardise=False)
  dih = dict(kind='dih', alpha=0.1, temperature=5.0, reduction='sum', cross_entropy='per_branch',
             members='cohort', weights='equal', gain=1.0, standardise=False)
  dkd = dict(kind='dkd', alpha=1.0, beta=8.0, temperature=4.0, cross_entropy=1.0,
             warmup_epochs=20.0, standardise=False)
  standardised = dict(alpha=0.9, temperature=2.0, gain=10.0, standardise=True)
  return {
      # --- Methods that teach through logits. ---
      # Cross-entropy with the labels alone.
      'ce': dict(kind='ce'),
      # The teacher's own classifier teaches.
      'kd': kd,
      # The cohort teaches: heads and the teacher's own classifier.
      'dih': dih,
      # The cohort, weighted by validation accuracy, or by a softmax fitted to the validation split.
      'dih_accuracy': {**dih, 'weights': 'accuracy'},
      'dih_learnt': {**dih, 'weights': 'learnt'},
      # Target and non-target classes apart.
      'dkd': dkd,
      # Logit standardisation, with the weights of its paper (0.1 CE + 9 T^2 KL, T 2). The cohort
      # uses the mean of this loss over its members.
      'kd_std': {**kd, **standardised},
      'dkd_std': {**dkd, 'alpha': 9.0, 'beta': 72.0, 'temperature': 2.0, 'standardise': True},
      'dih_std': {**dih, **standardised, 'reduction': 'mean'},
      # A chain of assistants teaches, each taught by the previous one.
      'takd': dict(kind='takd', chain=('resnet20',), **weighting),
      # Peers that learn from each other.
      'dml': dict(kind='dml', peers=('student',), alpha=0.5, temperature=1.0),

      # --- Controls, which show whether a gain comes from the heads. ---
      # KD with the loss scale of DIH.
      'kd_matched': {**kd, **paper, 'scale': 'cohort'},
      # KD as RepDistiller weights it.
      'kd_repdistiller': {**kd, **repdistiller},
      # DIH as a mean over the members, with the cross-entropy counted once, and with the teacher in
      # the place of every head.
      'dih_mean': {**dih, 'reduction': 'mean'},
      'dih_once': {**dih, 'cross_entropy': 'once'},
      'dih_teacher': {**dih, 'members': 'teacher'},

      # --- Methods that compare features or embeddings. ---
      # The loss of each is cross_entropy * CE + weight * term, as in RepDistiller.
      # FitNets has one hint layer, counted from 1: first the hint, then KD; or both terms together.
      'fitnets': dict(kind='fitnets', phases='two', hint=2, **weighting, cross_entropy=1.0,
                      weight=100.0),
      'fitnets_one': dict(kind='fitnets', phases='one', hint=2, **weighting, cross_entropy=1.0,
                          weight=100.0),
      'at': dict(kind='at', cross_entropy=1.0, weight=1000.0),
      'sp': dict(kind='sp', cross_entropy=1.0, weight=3000.0),
      'cc': dict(kind='cc', width=128, cross_entropy=1.0, weight=0.02),
      'vid': dict(kind='vid', cross_entropy=1.0, weight=1.0),
      'rkd': dict(kind='rkd', distance=25.0, angle=50.0, cross_entropy=1.0, weight=1.0),
      'pkt': dict(kind='pkt', cross_entropy=1.0, weight=30000.0),
      'ft': dict(kind='ft', rate=0.5, cross_entropy=1.0, weight=200.0),
      'nst': dict(kind='nst', cross_entropy=1.0, weight=50.0),
      'ab': dict(kind='ab', margin=1.0),
      'reviewkd': dict(kind='reviewkd', width=0, warmup_epochs=20.0, cross_entropy=1.0,
                       weight=1.0),
      'crd': dict(kind='crd', width=128, negatives=16384, temperature=0.07, momentum=0.5,
                  cross_entropy=1.0, weight=0.8),

      # --- Methods that train classifiers on features of the teacher and of the student. ---
      'tofd': dict(kind='tofd', temperature=3.0, alpha=0.05, beta=0.03),
      'mhkd': dict(kind='mhkd', alpha=0.1, temperature=4.0, beta=0.5, width=256),

      # --- Sums of entries; a feature method contributes only its weighted term. ---
      'dih_at': dict(kind='combined', methods=('dih', 'at'), weights=(1.0, 1.0)),
      'dih_crd': dict(kind='combined', methods=('dih', 'crd'), weights=(1.0, 1.0)),
  }


def training(
    config: 'ml_collections.ConfigDict', name: str
) -> 'ml_collections.ConfigDict':
  """Returns `config.student.train` with the learning rate of the entry `name`, if it has one."""
  train = config.student.train.copy_and_resolve_references()
  train.learning_rate = config.methods[name].get('learning_rate', train.learning_rate)
  return train


SHORT = {'alpha': 'alpha', 'learning_rate': 'lr'}  # Abbreviations in the names of variants.


def family(options: Mapping[str, Any]) -> str:
  """Returns a text that is equal for all variants of a method, from the options of a variant."""
  common = {option: value for option, value in options.items()
            if not (option in SHORT and isinstance(value, numbers.Real))}
  return json.dumps(common, sort_keys=True)
