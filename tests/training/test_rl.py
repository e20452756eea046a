"""The policy update: scores, filter and objective wired together, and one update that no layout of the work changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from igpo_jax.diffusion.estimators import Masks
from igpo_jax.diffusion.likelihood import Scores
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel import sharding
from igpo_jax.rl import objectives
from igpo_jax.rl.batch import UpdateBatch
from igpo_jax.rl.objectives import Objective
from igpo_jax.rl.rollout import RolloutSettings
from igpo_jax.training import rl
from tests.rl.rollout_cases import CONFIG, MODEL
from tests.training import tiny

GROUP = 4
SETTINGS = rl.RlSettings(
    rollout=RolloutSettings(groups=4, group_size=GROUP),
    logprob_chunk=7,
    # A mean over tokens: unequal counts in the micro-batches would show.
    objective=Objective(aggregation="token_pool", kl_coef=0.1),
)


@pytest.fixture(scope="module")
def params():
    return tiny.host_params()


@pytest.fixture(scope="module")
def score():
    """The scoring pass over the whole batch on one device; policies and masks of one kind share its program."""
    return rl.make_score(MODEL, 64, 1)


@pytest.fixture(scope="module")
def batch(score):
    """An update batch on the host whose behaviour policy and reference are other models than the one trained."""
    gathered = tiny.rollout_batch()
    every = np.ones_like(gathered.hint_mask)
    old = score(llada.Policy(tiny.host_params(5)), gathered, every)
    # Row by row at another distance from the trained policy, so that some ratios are inside the clip and some outside.
    new = score(llada.Policy(tiny.host_params()), gathered, every)
    shift = np.random.default_rng(4).permutation(np.linspace(-0.6, 0.6, tiny.ROWS))[:, None].astype(np.float32)
    old = dataclasses.replace(old, logp=new.logp + shift + 0.1 * (old.logp - new.logp))
    ref = dataclasses.replace(old, logp=new.logp + 0.1 * jnp.cos(10 * new.logp))
    weight = objectives.kl_weight(gathered.rewards, GROUP, SETTINGS.objective)
    return jax.tree.map(np.asarray, rl.make_update_batch(SETTINGS.objective)(gathered, old, ref, weight))


class Trainer:
    """A compiled inner update on a mesh, which starts from the same parameters at every call."""

    def __init__(self, params, shape, lora=tiny.FULL, micro_batches=1):
        self.params, self.lora, self.mesh = params, lora, tiny.mesh_of(shape)
        settings = dataclasses.replace(SETTINGS, micro_batches=micro_batches)
        with jax.set_mesh(self.mesh):
            _, _, self.optimizer, schedule = self.start()
            self.step = rl.make_rl_step(MODEL, settings, self.optimizer, schedule)

    def start(self):
        return tiny.make_state(self.mesh, self.params, self.lora)

    def run(self, batch, updates=1):
        """Trained parameters (host) and the metrics of every update."""
        metrics = []
        with jax.set_mesh(self.mesh):
            state, *_ = self.start()
            placed = sharding.shard_batch(batch, self.mesh)
            for _ in range(updates):
                state, values = self.step(state, placed)
                metrics.append({name: float(value) for name, value in values.items()})
        assert int(state.step) == updates
        return sharding.to_host(state.trainable), metrics


@pytest.fixture(scope="module")
def trainer(params):
    return Trainer(params, tiny.ONE)


@pytest.fixture(scope="module")
def full(trainer, batch):
    return trainer.run(batch)


def plain_loss(params, batch):
    """The objective written out over all rows at once, from whole log-softmaxes of prompt-first rows."""
    rollout, objective = batch.rollout, SETTINGS.objective
    prompt = np.zeros((tiny.ROWS, tiny.PROMPT), np.int32)
    valid = np.ones((tiny.ROWS, tiny.PROMPT + tiny.LENGTH), bool)
    for row, (tokens, mask) in enumerate(zip(rollout.prompt_tokens, rollout.prompt_mask, strict=True)):
        prompt[row, tiny.PROMPT - mask.sum() :] = tokens[mask]
        valid[row, : tiny.PROMPT - mask.sum()] = False
    canvas = np.full((tiny.ROWS, tiny.LENGTH), CONFIG.mask_token_id, np.int32)
    policy = llada.Policy(params)
    hidden = llada.forward(policy, MODEL, np.concatenate([prompt, canvas], axis=1), valid=valid)
    logp = jax.nn.log_softmax(llada.head_logits(policy, MODEL, hidden[:, tiny.PROMPT :]))
    logp = jnp.take_along_axis(logp, rollout.completion_tokens[..., None], axis=2)[..., 0]
    kept, advantage = batch.kept, rollout.advantages[:, None]
    delta = jnp.sum(jnp.where(kept, logp - batch.old_logp, 0.0), axis=1) / kept.sum(axis=1)
    ratio = jnp.exp(delta)[:, None]
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    gap = batch.ref_logp - logp
    kl = jnp.exp(gap) - gap - 1
    loss = -surrogate + objective.kl_coef * batch.kl_weight[:, None] * kl
    return jnp.sum(jnp.where(kept, loss, 0.0)) / kept.sum()


def test_one_update_is_plain_gradient_descent_with_adamw(params, trainer, full, batch):
    """Against autodiff of the objective written out and the optimizer applied by hand."""

    @jax.jit
    def update(params):
        value, grads = jax.value_and_grad(plain_loss)(params, batch)
        updates, _ = trainer.optimizer.update(grads, trainer.optimizer.init(params), params)
        return value, optax.tree.norm(grads), optax.apply_updates(params, updates)

    value, norm, expected = update(params)
    metrics = full[1][0]
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    tiny.assert_close(full[0], expected, tiny.UPDATE)
    assert 0 < metrics["clip_low"] + metrics["clip_high"] < 1, "the example has clipped rows and free ones"


def check_same(found, expected):
    tiny.assert_close(found[0], expected[0], tiny.UPDATE)
    for mine, yours in zip(found[1], expected[1], strict=True):
        assert mine == pytest.approx(yours, rel=5e-5, abs=1e-6)


def test_micro_batches_hold_unequal_numbers_of_tokens(batch):
    counts = np.asarray(sharding.micro_batches(jnp.asarray(batch.kept), 4)).sum(axis=(1, 2))
    assert len(set(counts.tolist())) > 1


def test_micro_batches_make_the_same_update(params, full, batch):
    check_same(Trainer(params, tiny.ONE, micro_batches=4).run(batch), full)


@pytest.mark.parametrize("shape", tiny.MESHES)
def test_one_device_and_eight_make_the_same_update(params, full, batch, shape):
    check_same(Trainer(params, tiny.MESHES[shape], micro_batches=2).run(batch), full)


def test_lora_on_one_device_and_eight(params, batch):
    """Two inner updates on the same batch, compiled once, which leave the base and the batch as they were."""
    expected = Trainer(params, tiny.ONE, tiny.LORA).run(batch, updates=2)
    trainer = Trainer(params, tiny.MESHES["1x8x1"], tiny.LORA, micro_batches=2)
    check_same(trainer.run(batch, updates=2), expected)
    first, second = expected[1]
    assert first["loss"] != second["loss"] and first["ratio"] != second["ratio"]
    with jax.set_mesh(trainer.mesh):
        state, placed, _, _ = trainer.start()
        start = tiny.programs_compiled()
        device = sharding.shard_batch(batch, trainer.mesh)
        for _ in range(3):
            before = state
            state, _ = trainer.step(state, device)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.trainable, before.opt_state)))
    assert tiny.programs_compiled() == start
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((placed, device)))
    tiny.assert_close(state.frozen, params, 0.0)


def test_a_group_without_spread_teaches_nothing(params, trainer, batch):
    """All advantages zero and no KL weight: the gradient is exactly zero, and only weight decay moves parameters."""
    rollout = dataclasses.replace(batch.rollout, advantages=np.zeros(tiny.ROWS, np.float32))
    idle = dataclasses.replace(batch, rollout=rollout, kl_weight=np.zeros(tiny.ROWS, np.float32))
    trained, (metrics,) = trainer.run(idle)
    assert metrics["grad_norm"] == 0.0 and metrics["loss"] == 0.0
    decay = 1 - tiny.OPTIMIZER.learning_rate * tiny.OPTIMIZER.weight_decay
    tiny.assert_close(trained["ff_out"]["weight"], decay * params["ff_out"]["weight"], 1e-7)
    tiny.assert_close(trained["ln_f"]["weight"], params["ln_f"]["weight"], 0.0)


def test_first_update_after_a_rollout_has_ratio_one(params, trainer, batch, score):
    """With the trained policy itself as behaviour policy and reference."""
    own = score(llada.Policy(params), batch.rollout, np.ones_like(batch.kept))
    fresh = dataclasses.replace(batch, old_logp=np.asarray(own.logp), ref_logp=np.asarray(own.logp))
    _, (metrics,) = trainer.run(fresh)
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-9)
    kept = batch.kept.sum(axis=1)
    assert metrics["loss"] == pytest.approx(-(batch.rollout.advantages * kept).sum() / kept.sum(), abs=1e-6)


@pytest.mark.parametrize("shape", ["1x1x1", "2x2x2"])
def test_scores_in_parts(params, batch, score, shape):
    """Rows come back in their order from any number of parts, on one device and on eight."""
    mesh = tiny.mesh_of(tiny.MESHES.get(shape, tiny.ONE))
    masked = np.random.default_rng(2).random(batch.kept.shape) < 0.5
    whole = score(llada.Policy(params), batch.rollout, masked)
    with jax.set_mesh(mesh):
        policy = jax.device_put(llada.Policy(params), llada.Policy(llada.shardings(CONFIG, mesh)))
        device = sharding.shard_batch((batch.rollout, masked), mesh)
        parts = rl.make_score(MODEL, 5, 4)(policy, *device)
    assert parts.logp.shape == batch.kept.shape
    tiny.assert_close(parts, whole, 1e-5)


def test_update_batch_holds_both_passes_and_the_filter():
    gathered = tiny.rollout_batch()
    rng = np.random.default_rng(1)
    entropy = rng.random(gathered.hint_mask.shape).astype(np.float32)
    old, ref = (Scores(rng.normal(size=entropy.shape).astype(np.float32), entropy + place) for place in (0, 1))
    weight = objectives.kl_weight(gathered.rewards, GROUP, Objective())
    batch: UpdateBatch = rl.make_update_batch(Objective())(gathered, old, ref, weight)
    np.testing.assert_array_equal(batch.old_logp, old.logp)
    np.testing.assert_array_equal(batch.ref_logp, ref.logp)
    for row in range(tiny.ROWS):
        hints = np.flatnonzero(gathered.hint_mask[row] & gathered.completion_mask[row])
        count = max(1, int(len(hints) * 0.2)) if len(hints) else 0
        best = set(hints[np.argsort(-entropy[row, hints])][:count].tolist())
        generated = set(np.flatnonzero(gathered.completion_mask[row] & ~gathered.hint_mask[row]).tolist())
        assert set(np.flatnonzero(batch.kept[row]).tolist()) == best | generated
    assert batch.kl_weight[:GROUP].tolist() == [0.0] * GROUP and batch.kl_weight[GROUP] == 1.0


@pytest.mark.parametrize("hidden", [None, "completion", "prompt"])
def test_hint_gap(params, batch, score, hidden):
    """Mean gain of generated tokens of hinted rows from seeing the hints, by a plain loop; prompts stay in view."""
    rollout, policy = jax.tree.map(jnp.asarray, batch.rollout), llada.Policy(params)
    masked = np.asarray(score(policy, rollout, np.ones_like(batch.kept)).logp)
    seen = np.asarray(score(policy, rollout, ~batch.rollout.hint_mask).logp)
    gains = [
        seen[row, place] - masked[row, place]
        for row in range(tiny.ROWS)
        for place in range(tiny.LENGTH)
        if batch.rollout.hint_mask[row].any()
        and batch.rollout.completion_mask[row, place]
        and not batch.rollout.hint_mask[row, place]
    ]
    assert len(gains) > 10
    given = dataclasses.replace(batch, rollout=rollout, old_logp=masked)
    if hidden:  # then log-probs under these masks are not those of the hints' comparison
        masks = Masks(jnp.zeros(batch.kept.shape, bool), jnp.ones_like(rollout.prompt_mask))
        masks = masks if hidden == "prompt" else Masks(masks.completion)
        given = dataclasses.replace(given, old_logp=np.full_like(masked, 9.0), masks=masks)
    assert rl.hint_gap(score, policy, given) == pytest.approx(np.mean(gains), abs=1e-6)
    bare = dataclasses.replace(rollout, hint_mask=jnp.zeros_like(rollout.hint_mask))
    assert np.isnan(rl.hint_gap(score, policy, dataclasses.replace(given, rollout=bare)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inner_updates": 0}, "inner_updates"),
        ({"steps": -1}, "steps"),
        ({"micro_batches": 3}, r"micro_batches is 3, which does not divide"),
        ({"score_batches": 5}, r"score_batches is 5, which does not divide"),
    ],
)
def test_settings_out_of_range(changes, words):
    with pytest.raises(UserError, match=words):
        rl.RlSettings(**changes)


def test_updates_of_a_stage():
    assert rl.RlSettings(steps=7, inner_updates=3).updates == 21


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("logprob_chunk", 0, r"rl\.logprob_chunk is 0, expected at least 1"),
        ("hint_gap_every", -1, r"rl\.hint_gap_every is -1, expected 0 \(never\)"),
        ("save_rollouts_every", -2, r"rl\.save_rollouts_every is -2, expected 0 \(never\)"),
    ],
)
def test_settings_out_of_range_are_refused(field, value, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(SETTINGS, **{field: value})
