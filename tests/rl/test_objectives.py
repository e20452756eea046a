"""The objective against worked examples, a plain Python re-implementation, and its promises about gradients."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.llada_8b.grpo import METHODS
from igpo_jax.diffusion.estimators import Masks
from igpo_jax.errors import UserError
from igpo_jax.rl.objectives import (
    LOG_RATIO_LIMIT,
    Objective,
    k3,
    kept_tokens,
    kl_weight,
    policy_loss,
)
from tests.rl.loss_cases import make_batch, make_scores, random_case

NO_KL = Objective(kl_coef=0.0)
OFFICIAL = Objective.official()


def loss_of(scores, batch, objective):
    sums = policy_loss(scores, batch, objective)
    return sums.numerator / sums.denominator


def gradient(scores, batch, objective):
    return jax.grad(lambda logp: loss_of(dataclasses.replace(scores, logp=logp), batch, objective))(scores.logp)


OLD = [[-1.0, -2.0, -0.5, -0.5]]
NEW = [[-0.9, -1.8, -0.6, -0.5]]


@pytest.mark.parametrize(
    ("level", "advantage", "expected"),
    [
        ("sequence", 1.0, -1.051271),
        ("sequence", -1.0, 1.051271),
        ("token", 1.0, -1.052502),
        ("token", -1.0, 1.057853),
    ],
)
def test_worked_ratio(level, advantage, expected):
    objective = dataclasses.replace(NO_KL, ratio=level)
    assert loss_of(make_scores(NEW), make_batch(OLD, [advantage]), objective) == pytest.approx(expected, abs=1e-6)


def test_worked_clip_has_no_gradient_where_the_bound_is_in_force():
    scores = make_scores(np.array(OLD) + 0.3)
    up, down = make_batch(OLD, [1.0]), make_batch(OLD, [-1.0])
    assert loss_of(scores, up, NO_KL) == pytest.approx(-1.2, abs=1e-6)
    np.testing.assert_array_equal(gradient(scores, up, NO_KL), 0)
    assert loss_of(scores, down, NO_KL) == pytest.approx(1.349859, abs=1e-6)
    np.testing.assert_allclose(gradient(scores, down, NO_KL), 1.349859 / 4, rtol=1e-6)
    metrics = policy_loss(scores, up, NO_KL).metrics
    assert metrics["clip_high"] == (1, 1) and metrics["clip_low"][0] == 0
    metrics = policy_loss(scores, down, NO_KL).metrics
    assert metrics["clip_high"][0] == 0 and metrics["outside"] == (1, 1)


def test_bounds_are_separate():
    objective = dataclasses.replace(NO_KL, clip_low=0.1, clip_high=0.5)
    assert loss_of(make_scores(np.array(OLD) + 0.9), make_batch(OLD, [2.0]), objective) == pytest.approx(-3.0)
    assert loss_of(make_scores(np.array(OLD) - 0.9), make_batch(OLD, [-2.0]), objective) == pytest.approx(1.8)


LEAK_KEPT = np.array([[1, 0, 0, 1], [1, 1, 1, 1]], bool)


def test_worked_filter_leak():
    """The released code moves filtered hint tokens through the ratio; with the ratio over kept tokens none moves."""
    logp = np.full((2, 4), -1.0)
    batch = make_batch(logp, [1.5, -1.5], kept=LEAK_KEPT, hint=~LEAK_KEPT)
    leaky = dataclasses.replace(OFFICIAL, kl_coef=0.0)
    assert loss_of(make_scores(logp), batch, leaky) == pytest.approx(0.5)
    np.testing.assert_allclose(gradient(make_scores(logp), batch, leaky), [[-0.125] * 4, [0.25] * 4], rtol=1e-6)
    by_token = dataclasses.replace(leaky, ratio="token")
    np.testing.assert_allclose(
        gradient(make_scores(logp), batch, by_token), [[-0.25, 0, 0, -0.25], [0.25] * 4], rtol=1e-6
    )
    for aggregation, first in [("token_pool", -0.25), ("sequence_mean", -0.375)]:
        tight = Objective(kl_coef=0.0, aggregation=aggregation)
        slots = np.array(gradient(make_scores(logp), batch, tight))
        np.testing.assert_allclose(slots[0], [first, 0, 0, first], rtol=1e-6)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_pool"])
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_no_gradient_and_no_value_passes_through_a_token_that_is_not_kept(level, aggregation):
    scores, batch = random_case(3, 6, 12)
    objective = Objective(ratio=level, aggregation=aggregation, kl_coef=0.3)
    slots = np.array(gradient(scores, batch, objective))
    assert (slots[~np.array(batch.kept)] == 0).all()
    assert np.abs(slots[np.array(batch.kept)]).max() > 0
    wild = dataclasses.replace(scores, logp=jnp.where(batch.kept, scores.logp, -jnp.inf))
    assert loss_of(wild, batch, objective) == loss_of(scores, batch, objective)
    np.testing.assert_array_equal(gradient(wild, batch, objective), slots)


@pytest.mark.parametrize(
    ("current_minus_reference", "expected"), [(0.2, 0.018731), (-0.2, 0.021403), (1, 0.367879), (-1, 0.718282)]
)
def test_worked_k3(current_minus_reference, expected):
    assert k3(jnp.float32(-current_minus_reference)) == pytest.approx(expected, abs=1e-6)


def test_k3_on_sequence_sums_and_its_guard():
    """Worked example: what a KL of whole-sequence log-ratios would be, and why it is taken per token."""
    assert k3(jnp.float32(10.0)) == pytest.approx(22015.47, rel=1e-6)
    assert k3(jnp.float32(-10.0)) == pytest.approx(9.000045, rel=1e-6)
    far = jnp.float32([-1000.0, 25.0, 90.0, 1e30])
    assert np.isfinite(k3(far)).all()
    np.testing.assert_array_equal(jax.vmap(jax.grad(k3))(far), 0)
    np.testing.assert_array_equal(k3(far[1:]), k3(jnp.float32(LOG_RATIO_LIMIT)))


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_extreme_log_ratios_stay_finite(level):
    batch = make_batch([[-500.0, -1.0], [-1.0, -1.0]], [-1.0, 1.0])
    scores = make_scores([[-1.0, -1.0], [-900.0, -1.0]])
    objective = Objective(ratio=level)
    assert np.isfinite(loss_of(scores, batch, objective))
    assert np.isfinite(gradient(scores, batch, objective)).all()


def plain_loss(scores, batch, objective) -> float:
    """Token by token in Python floats."""
    new, old, ref = (np.array(a, np.float64) for a in (scores.logp, batch.old_logp, batch.ref_logp))
    kept, completion = np.array(batch.kept), np.array(batch.rollout.completion_mask)
    sums = []
    for row, advantage in enumerate(np.array(batch.rollout.advantages, np.float64)):
        counted = completion[row] if objective.length == "first_eos" else np.ones_like(completion[row])
        over = [c for c in range(len(counted)) if (kept[row, c] if objective.filter_in_ratio else counted[c])]
        mean = sum(new[row, c] - old[row, c] for c in over) / max(len(over), 1)
        terms = []
        for c in np.flatnonzero(kept[row]):
            ratio = math.exp(mean if objective.ratio == "sequence" else new[row, c] - old[row, c])
            clipped = min(max(ratio, 1 - objective.clip_low), 1 + objective.clip_high)
            gap = ref[row, c] - new[row, c]
            kl = math.exp(gap) - gap - 1
            weight = objective.kl_coef * float(batch.kl_weight[row])
            terms.append(-min(ratio * advantage, clipped * advantage) + weight * kl)
        sums.append(terms)
    if objective.aggregation == "token_pool":
        return sum(map(sum, sums)) / sum(map(len, sums))
    full = [sum(terms) / len(terms) for terms in sums if terms]
    return sum(full) / len(full)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_pool"])
@pytest.mark.parametrize("length", ["first_eos", "all"])
@pytest.mark.parametrize("filter_in_ratio", [True, False])
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_equals_plain_python(level, filter_in_ratio, length, aggregation):
    objective = Objective(level, 0.1, 0.2, 0.3, aggregation, 0.2, filter_in_ratio, length)
    for seed in range(3):
        scores, batch = random_case(seed, 7, 11)
        assert loss_of(scores, batch, objective) == pytest.approx(
            plain_loss(scores, batch, objective), rel=2e-6, abs=1e-7
        )


def test_a_row_that_keeps_nothing_counts_nowhere():
    """Filler rows can complete a batch: they change neither loss nor metrics."""
    scores, batch = random_case(5, 6, 9)
    filled = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), batch)
    filled = dataclasses.replace(filled, kept=filled.kept.at[6:].set(False))
    more = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), scores)
    for objective in (Objective(), dataclasses.replace(OFFICIAL, filter_in_ratio=True)):
        one, two = policy_loss(scores, batch, objective), policy_loss(more, filled, objective)
        assert (one.numerator, one.denominator) == (two.numerator, two.denominator)
        assert one.metrics["ratio"] == two.metrics["ratio"]


@pytest.mark.parametrize("objective", [Objective(kl_coef=0.3), OFFICIAL, Objective("token", aggregation="token_pool")])
def test_micro_batches_add_up_exactly(objective):
    """Unequal counts in the parts: averaging their means would be wrong, adding their sums is right."""
    scores, batch = random_case(11, 8, 16)
    batch = dataclasses.replace(batch, kept=batch.kept.at[1].set(False))
    whole = policy_loss(scores, batch, objective)

    def numerator(logp, piece):
        sums = policy_loss(make_scores(logp, piece[0].entropy), piece[1], objective)
        return sums.numerator, sums

    total, slots, means = None, [], []
    for start in range(0, 8, 2):
        piece = jax.tree.map(lambda x, rows=slice(start, start + 2): x[rows], (scores, batch))
        grads, sums = jax.grad(numerator, has_aux=True)(piece[0].logp, piece)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        slots.append(grads)
        means.append(sums.numerator / sums.denominator)
    assert total.denominator == whole.denominator
    assert total.numerator == pytest.approx(float(whole.numerator), rel=1e-6)
    np.testing.assert_allclose(
        np.concatenate(slots) / total.denominator, gradient(scores, batch, objective), rtol=1e-6, atol=1e-9
    )
    assert abs(np.mean(means) - loss_of(scores, batch, objective)) > 1e-4
    for name, pair in whole.metrics.items():
        np.testing.assert_allclose(total.metrics[name], pair, rtol=1e-5, atol=1e-6, err_msg=name)


def test_zero_spread_groups_carry_no_kl_unless_asked():
    rewards = np.array([1.0, 1.0, 0.0, 1.0])
    np.testing.assert_array_equal(kl_weight(rewards, 2, Objective.paper()), [0, 0, 1, 1])
    np.testing.assert_array_equal(kl_weight(rewards, 2, OFFICIAL), [1, 1, 1, 1])
    logp = np.full((4, 3), -1.0)
    for objective, silent in [(Objective.paper(), True), (OFFICIAL, False)]:
        batch = make_batch(logp, [0, 0, -0.5, 0.5], ref=logp + 0.4, kl_weight=kl_weight(rewards, 2, objective))
        slots = np.array(gradient(make_scores(logp), batch, objective))
        assert (slots[:2] == 0).all() == silent
        assert np.abs(slots[2:]).min() > 0
        # The divergence is still measured on every row.
        numerator, denominator = policy_loss(make_scores(logp), batch, objective).metrics["kl"]
        assert numerator / denominator == pytest.approx(math.exp(0.4) - 1.4, rel=1e-5)


def test_without_kl_the_reference_is_not_read():
    batch = dataclasses.replace(make_batch(OLD, [1.0]), ref_logp=None)
    sums = policy_loss(make_scores(NEW), batch, NO_KL)
    assert "kl" not in sums.metrics and np.isfinite(sums.numerator)


def test_no_gradient_reaches_old_reference_or_metrics():
    scores, batch = random_case(2, 4, 8)

    def total(old, ref):
        sums = policy_loss(scores, dataclasses.replace(batch, old_logp=old, ref_logp=ref), Objective())
        return sums.numerator

    for slots in jax.grad(total, (0, 1))(batch.old_logp, batch.ref_logp):
        np.testing.assert_array_equal(slots, 0)

    def metric(logp):
        return policy_loss(make_scores(logp), batch, Objective()).metrics["ratio"][0]

    np.testing.assert_array_equal(jax.grad(metric)(scores.logp), 0)


def test_metrics_by_kind():
    scores, batch = random_case(7, 9, 14)
    metrics = policy_loss(scores, batch, dataclasses.replace(OFFICIAL, ratio="token", length="first_eos")).metrics
    kept, hint = np.array(batch.kept), np.array(batch.rollout.hint_mask)
    counted, entropy = np.array(batch.rollout.completion_mask), np.array(scores.entropy)
    ratio = np.exp(np.array(scores.logp) - np.array(batch.old_logp))
    for kind, mask in (("hint", hint), ("generated", ~hint)):
        numerator, denominator = metrics[f"ratio_{kind}"]
        assert numerator / denominator == pytest.approx(ratio[kept & mask].mean(), rel=1e-5)
        assert denominator == (kept & mask).sum()
        numerator, denominator = metrics[f"entropy_{kind}"]
        assert numerator / denominator == pytest.approx(entropy[counted & mask].mean(), rel=1e-5)
    assert metrics["hint_kept_share"] == ((kept & hint).sum(), (counted & hint).sum())
    assert metrics["entropy_hint_kept"][0] == pytest.approx(entropy[kept & hint].sum(), rel=1e-5)


def test_one_program_serves_every_batch_and_a_sharded_one():
    compiled = jax.jit(policy_loss, static_argnums=2)
    scores, batch = random_case(1, 8, 10)
    alone = compiled(scores, batch, Objective())
    compiled(*random_case(2, 8, 10), Objective())
    assert compiled._cache_size() == 1
    kinds = (jax.sharding.AxisType.Explicit,) * 3
    mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "tensor"), axis_types=kinds)
    rows = jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        sharded = jax.device_put((scores, batch), rows)
        split = compiled(*sharded, Objective())
        slots = jax.jit(gradient, static_argnums=2)(*sharded, Objective())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), alone, split)
    np.testing.assert_allclose(slots, gradient(scores, batch, Objective()), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ratio": "sequences"}, "ratio"),
        ({"aggregation": "mean"}, "aggregation"),
        ({"length": "eos"}, "length"),
        ({"clip_low": 1.0}, "clip_low"),
        ({"clip_high": -0.1}, "clip_high"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"entropy_top": 0.0}, "entropy_top"),
        ({"entropy_top": 1.5}, "entropy_top"),
    ],
)
def test_bad_settings_are_named(change, field):
    with pytest.raises(UserError, match=field):
        Objective(**change)


def test_presets():
    assert Objective.paper() == Objective()
    assert hash(Objective.official()) != hash(Objective())
    assert (OFFICIAL.aggregation, OFFICIAL.length, OFFICIAL.filter_in_ratio) == ("token_pool", "all", False)


def masked_case(seed, objective):
    """Random rows of which a part was in view; the last row wholly, and every position after its end hidden."""
    rng = np.random.default_rng(seed)
    scores, batch = random_case(seed, 6, 12)
    masked = rng.random((6, 12)) < 0.6
    masked[-1] = ~np.asarray(batch.rollout.completion_mask[-1])
    masks = Masks(jnp.asarray(masked))
    rollout = batch.rollout
    kept = kept_tokens(scores.entropy, rollout.hint_mask, rollout.completion_mask, objective, masks)
    return scores, dataclasses.replace(batch, kept=kept, masks=masks, kl_weight=jnp.ones(6))


def plain_token_loss(scores, batch, objective):
    """The token surrogate over hidden tokens, in loops: one mean over all, or of each row and then over rows."""
    rows, everything = [], []
    for row in range(len(scores.logp)):
        terms = []
        for place in range(scores.logp.shape[1]):
            if not (batch.rollout.completion_mask[row, place] and batch.masks.completion[row, place]):
                continue
            new, old, ref = (float(x[row, place]) for x in (scores.logp, batch.old_logp, batch.ref_logp))
            ratio, advantage = math.exp(new - old), float(batch.rollout.advantages[row])
            clipped = min(max(ratio, 1 - objective.clip_low), 1 + objective.clip_high)
            penalty = math.exp(ref - new) - (ref - new) - 1
            terms.append(-min(ratio * advantage, clipped * advantage) + objective.kl_coef * penalty)
        everything += terms
        rows += [sum(terms) / len(terms)] if terms else []
    return sum(everything) / len(everything) if objective.aggregation == "token_pool" else sum(rows) / len(rows)


@pytest.mark.parametrize("method", ["diffugrpo", "unigrpo"])
def test_the_baselines_against_loops(method):
    objective = dataclasses.replace(METHODS[method]["objective"], entropy_top=1.0)
    assert objective.ratio == "token"
    for seed in range(5):
        scores, batch = masked_case(seed, objective)
        assert loss_of(scores, batch, objective) == pytest.approx(plain_token_loss(scores, batch, objective), rel=1e-5)


@pytest.mark.parametrize("objective", [Objective(), OFFICIAL, METHODS["unigrpo"]["objective"]])
def test_a_token_in_view_is_no_likelihood(objective):
    """Whatever the network says at places that it could see: no loss, no ratio, no entropy, no gradient."""
    scores, batch = masked_case(7, objective)
    shown = ~batch.masks.completion
    assert bool((shown & batch.rollout.completion_mask).any())
    other = make_scores(jnp.where(shown, -40.0, scores.logp), jnp.where(shown, 9.0, scores.entropy))
    mine, yours = policy_loss(scores, batch, objective), policy_loss(other, batch, objective)
    jax.tree.map(np.testing.assert_array_equal, mine, yours)
    assert not np.any(np.asarray(gradient(scores, batch, objective))[np.asarray(shown)])


def test_the_filter_takes_its_share_of_the_hints_that_were_hidden():
    entropy, hint = jnp.arange(12.0)[None], jnp.ones((1, 12), bool)
    hidden = np.zeros((1, 12), bool)
    hidden[0, :5] = True
    kept = kept_tokens(entropy, hint, jnp.ones((1, 12), bool), Objective(entropy_top=0.4), Masks(jnp.asarray(hidden)))
    assert np.flatnonzero(kept).tolist() == [3, 4], "two of the five, those of highest entropy"
