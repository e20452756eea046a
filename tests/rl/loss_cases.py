"""Batches for the loss tests: only the fields that a loss reads carry values."""

import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion.likelihood import Scores
from igpo_jax.rl.batch import RolloutBatch, UpdateBatch


def make_batch(
    old, advantages, *, kept=None, ref=None, hint=None, completion_mask=None, kl_weight=None, masks=None
) -> UpdateBatch:
    """A batch of B rows and C positions; by default no hints, all kept, reference equal to the old policy."""
    old = jnp.asarray(old, jnp.float32)
    rows, length = old.shape
    yes = jnp.ones((rows, length), bool)
    rollout = RolloutBatch(
        prompt_tokens=jnp.zeros((rows, 1), jnp.int32),
        prompt_mask=jnp.ones((rows, 1), bool),
        completion_tokens=jnp.zeros((rows, length), jnp.int32),
        completion_mask=yes if completion_mask is None else jnp.asarray(completion_mask),
        hint_mask=~yes if hint is None else jnp.asarray(hint),
        rewards=jnp.zeros(rows),
        correct=jnp.zeros(rows, bool),
        advantages=jnp.asarray(advantages, jnp.float32),
        group_id=jnp.zeros(rows, jnp.int32),
    )
    return UpdateBatch(
        rollout=rollout,
        old_logp=old,
        ref_logp=old if ref is None else jnp.asarray(ref, jnp.float32),
        kept=yes if kept is None else jnp.asarray(kept),
        kl_weight=jnp.ones(rows) if kl_weight is None else jnp.asarray(kl_weight, jnp.float32),
        masks=masks,
    )


def make_scores(logp, entropy=None) -> Scores:
    """Scores with entropy 1 everywhere unless given."""
    logp = jnp.asarray(logp, jnp.float32)
    return Scores(logp, jnp.ones_like(logp) if entropy is None else jnp.asarray(entropy, jnp.float32))


def random_case(seed: int, rows: int, length: int) -> tuple[Scores, UpdateBatch]:
    """Rows of unequal lengths with hints, some filtered, some groups without KL."""
    rng = np.random.default_rng(seed)
    old = -rng.gamma(2.0, 1.0, (rows, length))
    ends = rng.integers(3, length + 1, rows)
    completion_mask = np.arange(length) < ends[:, None]
    hint = (rng.random((rows, length)) < 0.4) & (np.arange(rows) % 3 == 0)[:, None]
    hint[:, 0] = False
    batch = make_batch(
        old,
        rng.normal(size=rows),
        kept=completion_mask & (~hint | (rng.random((rows, length)) < 0.3)),
        ref=old + rng.normal(0, 0.3, old.shape),
        hint=hint,
        completion_mask=completion_mask,
        kl_weight=np.arange(rows) % 2,
    )
    return make_scores(old + rng.normal(0, 0.2, old.shape), rng.gamma(2.0, 1.0, old.shape)), batch
