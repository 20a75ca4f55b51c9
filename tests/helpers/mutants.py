"""Mistakes made on purpose, each of which the tests of its package have to notice."""
import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
  """One mistake.

  Attributes:
    name: for the table and `--only`.
    file: the file with the mistake, under `kdih/`.
    old: text that occurs once in that file.
    new: the mistake, which takes its place.
    tests: files under `tests/` that come first, because they are the likeliest to fail.
  """

  name: str
  file: str
  old: str
  new: str
  tests: tuple[str, ...]

  @property
  def package(self) -> str:
    """Returns the package with the mistake, whose tests have the same name."""
    return self.file.partition('/')[0]


def _mutants(file: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutant]:
  """Returns mutants of one file, of (name, old, new) each."""
  return [Mutant(name=name, file=file, old=old, new=new, tests=tuple(tests.split()))
          for name, old, new in changes]


MUTANTS = (
    # --- What every method is made of. ---
    *_mutants(
        'distillation/losses.py', 'distillation/test_losses.py',
        ('kl_without_t_squared',
         'return temperature**2 * kl_divergence(', 'return kl_divergence('),
        ('alpha_swapped',
         "'kl': alpha * gain", "'kl': (1 - alpha) * gain"),
        ('kl_the_other_way_round',
         'expectation(jnp.exp(log_teacher), log_teacher - log_student)',
         'expectation(jnp.exp(log_student), log_student - log_teacher)'),
        ('student_not_tempered',
         '-jax.nn.log_softmax(student / temperature))', '-jax.nn.log_softmax(student))'),
        ('softmax_over_the_batch',
         'expectation(jax.nn.softmax(teacher / temperature),',
         'expectation(jax.nn.softmax(teacher / temperature, axis=0),'),
        ('spread_subtracted',
         'temperature**2 * (kl + label.spread)', 'temperature**2 * (kl - label.spread)'),
        ('deviation_of_the_population',
         'max(logits.shape[-1] - 1, 1)', 'logits.shape[-1]')),
    *_mutants(
        'distillation/features.py', 'methods/test_at_nst_vid.py methods/test_ft_reviewkd.py',
        ('length_is_a_mean',
         '(vectors * vectors).sum(-1, keepdims=True)',
         '(vectors * vectors).mean(-1, keepdims=True)'),
        ('pooling_windows_too_short',
         '-(-(i + 1) * size // side)', 'max((i + 1) * size // side, i * size // side + 1)')),
    *_mutants(
        'distillation/method.py', 'methods/test_at_nst_vid.py',
        ('feature_weight_ignored',
         "'feature': self.weight * self.term(lesson)", "'feature': self.term(lesson)")),

    # --- Methods. ---
    *_mutants(
        'methods/dih.py', 'methods/test_dih.py methods/test_logits.py',
        ('dih_cross_entropy_never_once',
         "if self.reduction == 'mean' or self.cross_entropy == 'once':",
         "if self.reduction == 'mean':"),
        ('dih_gain_ignored',
         'kl_weight = self.gain / (', 'kl_weight = 1 / ('),
        ('dih_controls_swapped',
         "if self.members == 'teacher' else", "if self.members != 'teacher' else")),
    *_mutants(
        'methods/kd.py', 'methods/test_methods.py',
        ('kd_scale_ignored',
         "self.context.num_members if self.scale == 'cohort' else 1", '1')),
    *_mutants(
        'methods/dkd.py', 'methods/test_logits.py',
        ('dkd_without_warmup',
         'jnp.minimum(lesson.epoch / self.warmup_epochs, 1)', '1')),
    *_mutants(
        'methods/dml.py', 'methods/test_dml_takd_sums.py',
        ('dml_peers_get_gradients',
         'jax.lax.stop_gradient(other)', 'other')),
    *_mutants(
        'methods/mhkd.py', 'methods/test_tofd_mhkd.py',
        ('mhkd_teacher_heads_get_gradients',
         'self._kd(student, jax.lax.stop_gradient(teacher), labels)',
         'self._kd(student, teacher, labels)')),
    *_mutants(
        'methods/crd.py', 'methods/test_crd.py',
        ('crd_bank_not_updated',
         'bank.value = update(', 'update('),
        ('crd_momentum_swapped',
         'momentum * bank[index] + (1 - momentum) * new',
         '(1 - momentum) * bank[index] + momentum * new')),
    *_mutants(
        'methods/nst.py', 'methods/test_at_nst_vid.py',
        ('nst_cross_term_once',
         '- 2 * _kernel(student, teacher)', '- _kernel(student, teacher)')),

    # --- The cohort. ---
    *_mutants(
        'cohort/members.py', 'cohort/test_members.py',
        ('final_member_first',
         '{**{tap: logits[tap] for tap in taps}, FINAL: output.logits}',
         '{FINAL: output.logits, **{tap: logits[tap] for tap in taps}}')),
    *_mutants(
        'cohort/soft_label_mean.py', 'cohort/test_soft_label_mean.py methods/test_dih.py',
        ('members_not_tempered',
         'jax.nn.log_softmax(members / temperature)', 'jax.nn.log_softmax(members)'),
        ('mean_soft_label_is_a_sum',
         'c = c / jnp.maximum(c.sum(), _TINY)', 'c = c * 1.0'),
        ('mean_of_members_not_normalised',
         ' - jnp.log(float(len(members)))', '')),
    *_mutants(
        'cohort/member_weights.py', 'cohort/test_member_weights.py',
        ('members_weighted_by_errors',
         'stacked.argmax(-1) == labels', 'stacked.argmax(-1) != labels'),
        ('weights_of_the_sum_1',
         'weights / max(weights.mean(), 1e-12)', 'weights / max(weights.sum(), 1e-12)')),
    *_mutants(
        'cohort/head_modules.py', 'cohort/test_members.py',
        ('gap_head_takes_the_highest',
         'feature.mean(axis=range(1, feature.ndim - 1))',
         'feature.max(axis=range(1, feature.ndim - 1))')),
    *_mutants(
        'cohort/cache/lookup.py', 'phases/test_problem.py cohort/test_cache.py',
        ('device_row_off_by_one',
         "jnp.searchsorted(arrays['signal_images'], batch.index)",
         "jnp.searchsorted(arrays['signal_images'], batch.index) + 1")),
    *_mutants(
        'cohort/cache/build.py', 'phases/test_problem.py cohort/test_cache.py',
        ('every_view_is_the_first',
         "jnp.full(batch['index'].shape, slot)", "jnp.full(batch['index'].shape, 0 * slot)")),
    *_mutants(
        'cohort/analysis.py', 'cohort/test_analysis.py',
        ('calibration_gaps_cancel',
         "abs(b['accuracy'] - b['confidence'])", "(b['accuracy'] - b['confidence'])")),

    # --- Training. ---
    *_mutants(
        'training/state.py', 'training/test_update.py',
        ('updates_times_zero',
         'params=optax.apply_updates(self.params, updates)', 'params=self.params'),
        ('same_random_numbers_every_step',
         'jax.random.fold_in(jax.random.key(seed), step)', 'jax.random.key(seed)')),
    *_mutants(
        'training/optimizer.py', 'training/test_optimizer.py',
        ('weight_decay_ignored',
         'optax.add_decayed_weights(train.weight_decay)', 'optax.add_decayed_weights(0.0)'),
        ('schedule_constant',
         'optax.piecewise_constant_schedule(train.learning_rate, boundaries)',
         'optax.constant_schedule(train.learning_rate)'),
        ('nesterov_ignored',
         'nesterov=train.nesterov', 'nesterov=False')),
    *_mutants(
        'training/step.py', 'training/test_update.py training/test_step.py',
        ('mask_ignored',
         'jnp.where(mask > 0, per_example, 0)', 'jnp.where(mask >= 0, per_example, 0)'),
        ('gradients_summed_over_devices',
         'jax.lax.pmean((gradients, metrics), devices.AXIS)',
         'jax.lax.psum((gradients, metrics), devices.AXIS)'),
        ('top5_of_four',
         'min(5, logits.shape[-1])', 'min(4, logits.shape[-1])')),
    *_mutants(
        'training/accumulate.py', 'training/test_accumulate.py',
        ('parts_summed',
         'values.mean(0)', 'values.sum(0)')),
    *_mutants(
        'training/checkpoints.py', 'training/test_checkpoints.py',
        ('best_is_last',
         'return best is None or metrics[SELECTION] >= best[SELECTION]', 'return True')),
)
