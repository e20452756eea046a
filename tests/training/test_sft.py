"""The supervised step: its loss against plain numpy, and one update that no layout of the work changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from igpo_jax.diffusion import masking, noise
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.models.config import REMAT
from igpo_jax.parallel import sharding
from igpo_jax.training import sft
from tests.rl.rollout_cases import CONFIG, MODEL
from tests.training import tiny

KEY = 9


@pytest.fixture(scope="module")
def params():
    return tiny.host_params()


class Trainer:
    """A compiled step on a mesh, which starts from the same parameters at every call."""

    def __init__(self, params, shape, lora=tiny.FULL, micro_batches=1, model=MODEL):
        self.params, self.lora, self.mesh = params, lora, tiny.mesh_of(shape)
        settings = sft.SftSettings(batch_size=tiny.ROWS, micro_batches=micro_batches, logprob_chunk=7)
        with jax.set_mesh(self.mesh):
            _, _, self.optimizer, schedule = self.start()
            self.step = sft.make_sft_step(model, settings, self.optimizer, schedule)

    def start(self):
        return tiny.make_state(self.mesh, self.params, self.lora)

    def run(self, updates_made=0, key=KEY):
        """Trained parameters (host) and metrics of one update."""
        with jax.set_mesh(self.mesh):
            state = dataclasses.replace(self.start()[0], step=sharding.replicate(np.int32(updates_made), self.mesh))
            batch = sharding.shard_batch(tiny.sft_batch(), self.mesh)
            state, metrics = self.step(state, batch, jax.random.key(key))
        assert int(state.step) == updates_made + 1
        return sharding.to_host(state.trainable), {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def trainer(params):
    return Trainer(params, tiny.ONE)


@pytest.fixture(scope="module")
def full(trainer):
    return trainer.run()


@pytest.fixture(scope="module")
def lora(params):
    return Trainer(params, tiny.ONE, tiny.LORA).run()


def plain_loss(params, batch, masked, probability):
    """Mean over rows of sum CE / p over masked tokens, by the answer length; prompt first, all logits at once."""
    prompt = np.zeros((tiny.ROWS, tiny.PROMPT), np.int32)
    valid = np.ones((tiny.ROWS, tiny.PROMPT + tiny.LENGTH), bool)
    for row, (tokens, mask) in enumerate(zip(batch.prompt_tokens, batch.prompt_mask, strict=True)):
        prompt[row, tiny.PROMPT - mask.sum() :] = tokens[mask]
        valid[row, : tiny.PROMPT - mask.sum()] = False
    answer = np.where(masked, CONFIG.mask_token_id, batch.completion_tokens)
    policy = llada.Policy(params)
    hidden = llada.forward(policy, MODEL, np.concatenate([prompt, answer], axis=1), valid=valid)
    logp = jax.nn.log_softmax(llada.head_logits(policy, MODEL, hidden[:, tiny.PROMPT :]))
    picked = jnp.take_along_axis(logp, batch.completion_tokens[..., None], axis=2)[..., 0]
    return jnp.mean(jnp.sum(jnp.where(masked, -picked, 0.0), axis=1) / probability / tiny.LENGTH)


def test_one_update_is_plain_gradient_descent_with_adamw(params, trainer, full):
    """Against autodiff of a plain loss and the optimizer applied by hand."""
    batch = tiny.sft_batch()
    keys = noise.row_keys(jax.random.key(KEY), "sft", 0, batch.row_ids)
    every = np.ones_like(batch.completion_tokens, bool)
    noised = masking.sft_noise(keys, batch.completion_tokens, every, CONFIG.mask_token_id, 1e-3)
    masked, probability = np.asarray(noised.masked), np.asarray(noised.probability)
    assert 0 < masked.mean() < 1 and masked[batch.completion_tokens == CONFIG.eos_token_id].any()

    @jax.jit
    def update(params):
        value, grads = jax.value_and_grad(plain_loss)(params, batch, masked, probability)
        updates, _ = trainer.optimizer.update(grads, trainer.optimizer.init(params), params)
        return value, optax.tree.norm(grads), optax.apply_updates(params, updates)

    value, norm, expected = update(params)
    assert full[1]["loss"] == pytest.approx(float(value), rel=1e-5)
    assert full[1]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    tiny.assert_close(full[0], expected, tiny.UPDATE)
    assert full[1]["grad_norm"] > tiny.OPTIMIZER.clip_norm, "the clip is in force"


def test_only_masked_tokens_count_and_filler_is_one_of_them(params):
    batch = tiny.sft_batch()
    policy, probability = llada.Policy(params), np.full(tiny.ROWS, 0.5, np.float32)
    filler = batch.completion_tokens == CONFIG.eos_token_id

    @jax.jit
    def sums(masked, probability=probability):
        return sft.sft_sums(policy, MODEL, batch, masked, probability, 64)

    nothing = sums(np.zeros_like(filler))
    assert (float(nothing.numerator), float(nothing.denominator)) == (0.0, float(tiny.ROWS))
    only_filler, text, everything = sums(filler), sums(~filler), sums(np.ones_like(filler))
    assert float(only_filler.numerator) > 0
    assert float(everything.metrics["masked_entropy"][1]) == filler.size
    assert float(text.metrics["masked_cross_entropy"][1]) == (~filler).sum()
    halved = sums(filler, 2 * probability)
    assert float(halved.numerator) == pytest.approx(float(only_filler.numerator) / 2, rel=1e-5)


def check_same(found, expected):
    tiny.assert_close(found[0], expected[0], tiny.UPDATE)
    assert found[1] == pytest.approx(expected[1], rel=2e-5, abs=1e-7)


@pytest.mark.parametrize("shape", tiny.MESHES)
def test_one_device_and_eight_make_the_same_update(params, full, shape):
    check_same(Trainer(params, tiny.MESHES[shape], micro_batches=2).run(), full)


def test_micro_batches_make_the_same_update(params, full):
    check_same(Trainer(params, tiny.ONE, micro_batches=4).run(), full)


@pytest.mark.parametrize("remat", ["qkv_context", "full"])
def test_rematerialisation_changes_no_update(params, full, remat):
    assert remat in REMAT
    check_same(Trainer(params, tiny.ONE, model=llada.Model(CONFIG, llada.Compute(remat=remat))).run(), full)


def test_lora_steps_compile_once_and_donate_their_state(params, lora):
    """Three steps on eight devices; the first is the one that a single device makes."""
    trainer = Trainer(params, tiny.MESHES["2x2x2"], tiny.LORA, micro_batches=2)
    check_same(trainer.run(), lora)
    with jax.set_mesh(trainer.mesh):
        state, placed, _, _ = trainer.start()
        losses, start = [], tiny.programs_compiled()
        for number in range(3):
            before = state
            batch = sharding.shard_batch(tiny.sft_batch(number), trainer.mesh)
            state, metrics = trainer.step(state, batch, jax.random.key(KEY))
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.trainable, before.opt_state)))
            losses.append(float(metrics["loss"]))
    assert tiny.programs_compiled() == start, "everything was compiled by the run before"
    assert int(state.step) == 3 and len(set(losses)) == 3
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(placed)), "the caller keeps its parameters"
    tiny.assert_close(state.frozen, params, 0.0)


def test_every_step_draws_its_own_noise(trainer, full):
    """Noise depends on the key and the update, so the same batch is masked anew at every step."""
    losses = [trainer.run(*where)[1]["loss"] for where in ((0, KEY), (1, KEY), (0, KEY + 1))]
    assert losses[0] == full[1]["loss"] and len(set(losses)) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 6, "micro_batches": 4}, r"micro_batches is 4.*batch_size 6"),
        ({"steps": -1}, "sft.steps is -1, expected at least 0"),
        ({"epochs": -0.5}, "sft.epochs is -0.5"),
        ({"batch_size": 0}, "batch_size"),
        ({"micro_batches": 0}, "micro_batches"),
        ({"logprob_chunk": 0}, "sft.logprob_chunk is 0, expected at least 1"),
        ({"log_every": 0}, "sft.log_every is 0"),
        ({"minimum_mask": 1.0}, "sft.minimum_mask is 1.0, expected a share"),
        ({"minimum_mask": -0.1}, "sft.minimum_mask"),
    ],
)
def test_settings_out_of_range(changes, words):
    with pytest.raises(UserError, match=words):
        sft.SftSettings(**changes)
