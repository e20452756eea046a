"""The programs of scoring and update: how often they compile, and that no array spans batch, length and vocabulary."""

import dataclasses

import jax
import numpy as np

from igpo_jax.models import llada
from igpo_jax.parallel import sharding
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from igpo_jax.rl.batch import UpdateBatch
from igpo_jax.rl.rollout import RolloutSettings
from igpo_jax.training import rl
from tests.rl.rollout_cases import CONFIG, MODEL
from tests.training import tiny

CHUNK, MICRO_BATCHES = 4, 2
SETTINGS = rl.RlSettings(
    rollout=RolloutSettings(groups=4, group_size=4), logprob_chunk=CHUNK, micro_batches=MICRO_BATCHES
)


def update_batch():
    gathered = tiny.rollout_batch()
    zeros = np.zeros(gathered.hint_mask.shape, np.float32)
    weight = np.ones(len(zeros), np.float32)
    return UpdateBatch(
        rollout=gathered, old_logp=zeros, ref_logp=zeros, kept=np.ones(zeros.shape, bool), kl_weight=weight
    )


def test_no_array_of_the_update_spans_batch_length_and_vocabulary(equations):
    mesh = tiny.mesh_of(tiny.ONE)
    with jax.set_mesh(mesh):
        state, _, optimizer, schedule = tiny.make_state(mesh, tiny.host_params())
        step = rl.make_rl_step(MODEL, SETTINGS, optimizer, schedule)
        program = jax.make_jaxpr(step)(state, sharding.shard_batch(update_batch(), mesh))
    vocab, width = CONFIG.embedding_size, CONFIG.d_model
    shapes = {
        value.aval.shape
        for equation, _ in equations(program.jaxpr)
        for value in equation.outvars
        if vocab in value.aval.shape
    }
    logits = {shape for shape in shapes if set(shape[-2:]) != {vocab, width} and len(shape) > 1}
    assert max(int(np.prod(shape)) for shape in logits) == tiny.ROWS // MICRO_BATCHES * CHUNK * vocab
    assert vocab not in (tiny.ROWS, tiny.LENGTH, width)


def test_scoring_compiles_once_for_every_policy_and_mask():
    score = rl.make_score(MODEL, CHUNK, MICRO_BATCHES)
    batch = tiny.rollout_batch()
    every = np.ones_like(batch.hint_mask)
    outs = [
        score(llada.Policy(tiny.host_params(seed)), dataclasses.replace(batch, rewards=batch.rewards + seed), masked)
        for seed, masked in ((3, every), (5, every), (3, ~batch.hint_mask))
    ]
    assert score._cache_size() == 1
    assert not np.array_equal(outs[0].logp, outs[1].logp) and not np.array_equal(outs[0].logp, outs[2].logp)


def test_the_head_is_gathered_once_and_not_for_every_chunk():
    mesh = make_mesh(MeshSettings(1, 8, 1))
    with jax.set_mesh(mesh):
        params = jax.device_put(tiny.host_params(), llada.shardings(CONFIG, mesh))
        batch = sharding.shard_batch(tiny.rollout_batch(), mesh)
        score = rl.make_score(MODEL, CHUNK, 1)
        text = score.lower(llada.Policy(params), batch, ~batch.hint_mask).compile().as_text()
    whole = f"f32[{CONFIG.d_model},{CONFIG.embedding_size}]"
    gathers = [line for line in text.splitlines() if f"= {whole}" in line and " all-gather(" in line]
    assert len(gathers) == 1 and "while" not in gathers[0]
