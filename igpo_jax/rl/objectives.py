"""The policy objective of IGPO (arXiv 2509.10396, Eq. 7) and of its released code (trainer_igpo.py, compute_loss).

A loss is a weighted mean of token terms: the clipped surrogate of an importance ratio plus a KL penalty. Two tables
say what may vary: the level of the ratio (``RATIOS``) and the weight of each token in the mean (``AGGREGATIONS``).
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from igpo_jax.diffusion.estimators import Masks
from igpo_jax.diffusion.likelihood import Scores
from igpo_jax.errors import UserError, check_choice
from igpo_jax.rl.advantages import zero_spread
from igpo_jax.rl.batch import UpdateBatch

LENGTHS = ("first_eos", "all")

#: Log-ratios are cut to this size before exp, which would overflow near 88. Beyond e^20 a token or sequence adds a
#: constant and no gradient: one such token would otherwise be the whole update.
LOG_RATIO_LIMIT = 20.0


@flax.struct.dataclass
class LossSums:
    """A loss before its division, so that sums over micro-batches and devices give the exact global mean."""

    numerator: jax.Array  # () float32
    denominator: jax.Array  # () float32, independent of the parameters
    metrics: dict[str, tuple[jax.Array, jax.Array]]  # name -> (numerator, denominator), both () float32


@dataclasses.dataclass(frozen=True)
class Objective:
    """What an inner update minimises; the defaults are the paper's."""

    ratio: str = "sequence"  #: one importance ratio per sequence (geometric mean over its tokens), or per token
    clip_low: float = 0.2  #: the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_high: float = 0.2  #: the upper bound may differ from the lower one
    kl_coef: float = 0.01  #: beta, weight of the k3 estimate of KL(policy || reference); 0 leaves it out
    aggregation: str = (
        "sequence_mean"  #: mean over each sequence's tokens, then over sequences; or token_pool, one mean
    )
    entropy_top: float = 0.2  #: tau, share of hint tokens kept, those of highest entropy; 1 keeps all
    filter_in_ratio: bool = (
        True  #: the mean inside the sequence ratio leaves filtered hints out (the released code does not)
    )
    length: str = "first_eos"  #: a completion ends with its first EOS, or runs over all positions
    kl_on_zero_spread: bool = False  #: whether groups whose rewards are all equal still carry the KL penalty

    def __post_init__(self) -> None:
        """Raises UserError for an unknown choice or a value out of range."""
        check_choice("rl.objective.ratio", self.ratio, RATIOS)
        check_choice("rl.objective.aggregation", self.aggregation, AGGREGATIONS)
        check_choice("rl.objective.length", self.length, LENGTHS)
        if not 0.0 <= self.clip_low < 1.0 or self.clip_high < 0.0:
            raise UserError(
                f"rl.objective.clip_low and clip_high are {self.clip_low} and {self.clip_high}, expected "
                "0 <= clip_low < 1 and clip_high >= 0"
            )
        if self.kl_coef < 0.0:
            raise UserError(f"rl.objective.kl_coef is {self.kl_coef}, expected at least 0; 0 leaves the KL penalty out")
        if not 0.0 < self.entropy_top <= 1.0:
            raise UserError(
                f"rl.objective.entropy_top is {self.entropy_top}, expected a share above 0; 1 keeps all hints"
            )

    @classmethod
    def paper(cls) -> "Objective":
        """The paper's objective (Eq. 7): sequence ratio and length over kept tokens up to the first EOS."""
        return cls()

    @classmethod
    def official(cls) -> "Objective":
        """The released code's: one mean over all kept tokens, filtered hints still in the ratio, EOS filler counted."""
        return cls(aggregation="token_pool", filter_in_ratio=False, length="all", kl_on_zero_spread=True)


def entropy_filter(entropy: jax.Array, hint_mask: jax.Array, counted: jax.Array, tau: float) -> jax.Array:
    """Keeps every generated token, and of n hint tokens in a sequence the max(1, int(n tau)) of highest entropy.

    Args:
      entropy: (B, C) float32, under the behaviour policy.
      hint_mask: (B, C) bool.
      counted: (B, C) bool, positions that count; nothing outside is kept or counted.
      tau: share of hints kept. Of equal entropies the earlier position wins.

    Returns:
      (B, C) bool.
    """
    hints = hint_mask & counted
    length = entropy.shape[1]
    order = jnp.argsort(jnp.where(hints, -entropy, jnp.inf), axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    # Counted in Python: float32 would put some products n x tau on the other side of a whole number.
    quota = np.array([max(1, int(n * tau)) for n in range(length + 1)], np.int32)
    count = jnp.sum(hints, axis=1, keepdims=True)
    keep = jnp.sum(jnp.where(count == np.arange(length + 1), quota, 0), axis=1, keepdims=True)
    return jnp.where(hints, rank < keep, counted)


def counted_tokens(completion_mask: jax.Array, masks: Masks | None, objective: Objective) -> jax.Array:
    """(B, C) bool: the positions that count, up to and including the first EOS or all, where the forward hid them."""
    counted = completion_mask if objective.length == "first_eos" else jnp.ones_like(completion_mask)
    return counted if masks is None else counted & masks.completion


def kept_tokens(
    entropy: jax.Array,
    hint_mask: jax.Array,
    completion_mask: jax.Array,
    objective: Objective,
    masks: Masks | None = None,
) -> jax.Array:
    """The positions that the loss runs over, once per scoring pass: ``UpdateBatch.kept``.

    Args:
      entropy: (B, C) float32, under the behaviour policy.
      hint_mask: (B, C) bool.
      completion_mask: (B, C) bool, True up to and including the first EOS.
      objective: length and share of hints.
      masks: what the pass hid; None for the whole completion.

    Returns:
      (B, C) bool.
    """
    counted = counted_tokens(completion_mask, masks, objective)
    return entropy_filter(entropy, hint_mask, counted, objective.entropy_top)


def kl_weight(rewards: np.ndarray, group_size: int, objective: Objective) -> np.ndarray:
    """``UpdateBatch.kl_weight``: 0 for the rows of a group without reward spread unless ``kl_on_zero_spread``.

    A group that teaches nothing then leaves the policy alone; its rows still count in the denominator.

    Args:
      rewards: (B,) float, completions of a group in a row.
      group_size: G.
      objective: the switch.

    Returns:
      (B,) float32 of zeros and ones.
    """
    flat = np.repeat(zero_spread(rewards, group_size), group_size)
    return np.where(flat & (not objective.kl_on_zero_spread), 0.0, 1.0).astype(np.float32)


def k3(log_ratio: jax.Array) -> jax.Array:
    """exp(r) - r - 1 for r = log(reference / policy): an unbiased, never negative estimate of KL(policy || reference).

    Args:
      log_ratio: float32; cut to +-``LOG_RATIO_LIMIT``, beyond which there is no gradient.
    """
    r = jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return jnp.expm1(r) - r


def _sequence_ratio(delta: jax.Array, kept: jax.Array, counted: jax.Array, objective: Objective) -> jax.Array:
    over = kept if objective.filter_in_ratio else counted
    total = jnp.sum(jnp.where(over, delta, 0.0), axis=1, keepdims=True)
    mean = total / jnp.maximum(jnp.sum(over, axis=1, keepdims=True), 1)
    return jnp.broadcast_to(mean, delta.shape)


def _token_ratio(delta: jax.Array, kept: jax.Array, counted: jax.Array, objective: Objective) -> jax.Array:
    return jnp.where(kept, delta, 0.0)


#: level -> log-ratio (B, C) from new minus old log-probs (B, C), the kept tokens and the counted ones.
RATIOS: dict[str, Callable[[jax.Array, jax.Array, jax.Array, Objective], jax.Array]] = {
    "sequence": _sequence_ratio,
    "token": _token_ratio,
}


def _sequence_mean(kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    tokens = jnp.sum(kept, axis=1, keepdims=True)
    return kept / jnp.maximum(tokens, 1).astype(jnp.float32), jnp.sum(tokens > 0, dtype=jnp.float32)


def _token_pool(kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    return kept.astype(jnp.float32), jnp.sum(kept, dtype=jnp.float32)


#: name -> (weight of each token (B, C) float32, their sum), from the kept tokens; a row that keeps none counts nowhere.
AGGREGATIONS: dict[str, Callable[[jax.Array], tuple[jax.Array, jax.Array]]] = {
    "sequence_mean": _sequence_mean,
    "token_pool": _token_pool,
}


def policy_loss(scores: Scores, batch: UpdateBatch, objective: Objective) -> LossSums:
    """The loss of one micro-batch: -min(ratio A, clip(ratio) A) + kl_coef kl_weight k3, averaged over the kept tokens.

    The KL of Eq. 7 is taken per token and averaged like the surrogate: on whole-sequence log-ratios k3 explodes
    (22015 at -10). With ``filter_in_ratio`` no gradient reaches a token that is not kept.

    Args:
      scores: of the policy being trained; gradients flow through ``logp`` alone.
      batch: B completions with behaviour and reference log-probs; the old ones may stay the same over all inner
        updates. ``ref_logp`` is not read when ``kl_coef`` is 0.
      objective: what to compute.

    Returns:
      Sums whose quotient is the loss. Metrics weigh tokens as the loss does: ``ratio``, ``outside`` (ratio beyond a
      bound), ``clip_low`` and ``clip_high`` (the bound is in force: no gradient), ``kl``, and apart for ``_hint`` and
      ``_generated`` tokens ``ratio``, ``outside``, ``clip``, ``loss``, ``advantage``, ``logp``. Plain token means:
      ``entropy_generated``, ``entropy_hint`` (all hints of the completion), ``entropy_hint_kept``, ``hint_kept_share``.
    """
    rollout, kept = batch.rollout, jnp.asarray(batch.kept)
    hint_mask, completion = jnp.asarray(rollout.hint_mask), jnp.asarray(rollout.completion_mask)
    logp, advantage = scores.logp.astype(jnp.float32), jnp.asarray(rollout.advantages)[:, None]
    old, ref = jax.lax.stop_gradient((batch.old_logp, batch.ref_logp))
    counted = counted_tokens(completion, batch.masks, objective)
    log_ratio = RATIOS[objective.ratio](logp - old, kept, counted, objective)
    ratio = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    low, high = 1.0 - objective.clip_low, 1.0 + objective.clip_high
    loss = -jnp.minimum(ratio * advantage, jnp.clip(ratio, low, high) * advantage)
    terms = {
        "ratio": ratio,
        "outside": (ratio < low) | (ratio > high),
        "clip_low": (ratio < low) & (advantage < 0),
        "clip_high": (ratio > high) & (advantage > 0),
    }
    if objective.kl_coef:
        terms["kl"] = k3(jnp.where(kept, ref - logp, 0.0))
        loss += objective.kl_coef * jnp.asarray(batch.kl_weight)[:, None] * terms["kl"]
    weight, denominator = AGGREGATIONS[objective.aggregation](kept)
    metrics = {name: (_sum(weight, term), denominator) for name, term in terms.items()}
    by_kind = {"ratio": ratio, "outside": terms["outside"], "clip": terms["clip_low"] | terms["clip_high"]}
    by_kind |= {"loss": loss, "advantage": jnp.broadcast_to(advantage, loss.shape), "logp": logp}
    metrics |= _means_by_kind(by_kind, weight, hint_mask)
    metrics |= _entropy_means(scores.entropy, hint_mask, counted, kept)
    return LossSums(_sum(weight, loss), denominator, jax.lax.stop_gradient(metrics))


def _sum(weight: jax.Array, term: jax.Array) -> jax.Array:
    # Where instead of a product alone: a term outside the kept tokens may be infinite.
    return jnp.sum(jnp.where(weight > 0, weight * term, 0.0), dtype=jnp.float32)


def _means_by_kind(
    terms: dict[str, jax.Array], weight: jax.Array, hint_mask: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    metrics: dict[str, tuple[jax.Array, jax.Array]] = {}
    for kind, mask in (("hint", hint_mask), ("generated", ~hint_mask)):
        share = jnp.where(mask, weight, 0.0)
        metrics |= {f"{name}_{kind}": (_sum(share, term), jnp.sum(share)) for name, term in terms.items()}
    return metrics


def _entropy_means(
    entropy: jax.Array, hint_mask: jax.Array, counted: jax.Array, kept: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    masks = {"hint": hint_mask & counted, "hint_kept": hint_mask & kept, "generated": ~hint_mask & counted}
    weights = {name: mask.astype(jnp.float32) for name, mask in masks.items()}
    metrics = {f"entropy_{name}": (_sum(weight, entropy), jnp.sum(weight)) for name, weight in weights.items()}
    return metrics | {"hint_kept_share": (jnp.sum(weights["hint_kept"]), jnp.sum(weights["hint"]))}
