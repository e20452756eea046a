"""Tiny things to train: batches for both stages, states on a mesh, and the settings of a run of seconds."""

import dataclasses
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from tensorboardX.proto.event_pb2 import Event

from igpo_jax.data.settings import DataSettings
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.models import llada
from igpo_jax.models.lora import LoraSettings
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from igpo_jax.rl.batch import RolloutBatch, completion_mask
from igpo_jax.rl.hints import HintSettings
from igpo_jax.rl.rollout import RolloutSettings
from igpo_jax.training import optimizers
from igpo_jax.training.checkpoints import CheckpointSettings
from igpo_jax.training.evaluation import EvaluationSettings
from igpo_jax.training.optimizers import OptimizerSettings
from igpo_jax.training.rl import RlSettings
from igpo_jax.training.run_settings import ModelSettings, RunSettings
from igpo_jax.training.sft import SftBatch, SftSettings
from igpo_jax.training.state import TrainState, create
from tests.rl.rollout_cases import CONFIG

ROWS, PROMPT, LENGTH = 16, 5, 16
MESHES = {"8x1x1": MeshSettings(8, 1, 1), "1x8x1": MeshSettings(1, 8, 1), "2x2x2": MeshSettings(2, 2, 2)}
ONE = MeshSettings(1, 1, 1)
FULL, LORA = LoraSettings(), LoraSettings(rank=2, alpha=4.0)
#: A constant rate from the first update on and a clip that is in force. The large eps keeps the size of each gradient
#: in the update, which Adam's first step otherwise reduces to its sign.
OPTIMIZER = OptimizerSettings(learning_rate=1.0, schedule="constant", warmup_steps=0, clip_norm=0.2, eps=0.1)
#: Parameters after an update with it, computed in another order.
UPDATE = 2e-6
RUN_OPTIMIZER = OptimizerSettings(learning_rate=1e-2, schedule="constant", warmup_steps=0)


_compiled: list[str] = []


def _count(event: str, *_: Any, **__: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(event)


jax.monitoring.register_event_duration_secs_listener(_count)


def programs_compiled() -> int:
    """How many programs jax has compiled so far in this process, those of single operations included."""
    return len(_compiled)


def mesh_of(settings: MeshSettings) -> jax.sharding.Mesh:
    """A mesh over as many of the virtual devices as the settings ask for."""
    return make_mesh(settings, jax.devices()[: settings.data * settings.fsdp * settings.tensor])


def host_params(seed: int = 3) -> llada.Params:
    """Random parameters as numpy arrays."""
    return jax.tree.map(np.asarray, jax.jit(llada.init, static_argnums=1)(jax.random.key(seed), CONFIG))


def make_state(mesh: jax.sharding.Mesh, params: llada.Params, lora: LoraSettings = FULL, updates: int = 10) -> Any:
    """(state on the mesh, its parameters as placed, the optimizer, the schedule)."""
    optimizer = optimizers.make_optimizer(OPTIMIZER, updates)
    placed = jax.device_put(params, llada.shardings(CONFIG, mesh))
    state = create(placed, lora, CONFIG, optimizer, jax.random.key(1), mesh)
    if lora.rank:
        state = with_open_adapters(state)
    return state, placed, optimizer, optimizers.make_schedule(OPTIMIZER, updates)


def with_open_adapters(state: TrainState) -> TrainState:
    """Adapters whose second matrix is not zero, so that gradients reach both."""
    layers = {
        name: {
            "a": pair["a"],
            "b": jax.device_put(
                0.1 * np.cos(np.arange(pair["b"].size)).reshape(pair["b"].shape).astype(np.float32), pair["b"].sharding
            ),
        }
        for name, pair in state.trainable.layers.items()
    }
    return dataclasses.replace(state, trainable=dataclasses.replace(state.trainable, layers=layers))


def prompts(rng: np.random.Generator, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask of prompts whose lengths differ."""
    tokens = rng.integers(0, 38, (rows, PROMPT)).astype(np.int32)
    mask = np.arange(PROMPT) < rng.integers(1, PROMPT + 1, rows)[:, None]
    return np.where(mask, tokens, CONFIG.pad_token_id).astype(np.int32), mask


def completions(rng: np.random.Generator, rows: int = ROWS) -> np.ndarray:
    """Completions of unequal lengths, filled up with EOS."""
    tokens = rng.integers(0, 38, (rows, LENGTH)).astype(np.int32)
    ends = rng.integers(2, LENGTH + 1, rows)[:, None]
    return np.where(np.arange(LENGTH) < ends, tokens, CONFIG.eos_token_id).astype(np.int32)


def sft_batch(seed: int = 0, rows: int = ROWS) -> SftBatch:
    """Prompts with completions, on the host."""
    rng = np.random.default_rng(seed)
    return SftBatch(*prompts(rng, rows), completions(rng, rows), np.arange(rows, dtype=np.int32))


def rollout_batch(seed: int = 0, group_size: int = 4) -> RolloutBatch:
    """A rollout with hints, unequal lengths and a group without spread, on the host."""
    rng = np.random.default_rng(seed)
    tokens = completions(rng)
    correct = rng.random(ROWS) < 0.5
    correct[:group_size] = True
    correct[group_size : group_size + 2] = [True, False]
    rewards = correct.astype(np.float32)
    groups = rewards.reshape(-1, group_size)
    hints = (rng.random((ROWS, LENGTH)) < 0.4) & (np.arange(ROWS) % 3 == 1)[:, None]
    return RolloutBatch(
        *prompts(rng),
        completion_tokens=tokens,
        completion_mask=completion_mask(tokens, CONFIG.eos_token_id),
        hint_mask=hints & (tokens != CONFIG.eos_token_id),
        rewards=rewards,
        correct=correct,
        advantages=(groups - groups.mean(axis=1, keepdims=True)).reshape(-1),
        group_id=np.repeat(np.arange(ROWS // group_size, dtype=np.int32), group_size),
    )


def assert_close(found: Any, wanted: Any, atol: float) -> None:
    """Two trees of arrays agree leaf by leaf."""
    for (path, one), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(
            np.asarray(one), np.asarray(other), atol=atol, rtol=0, err_msg=jax.tree_util.keystr(path)
        )


def run_settings(**changes: Any) -> RunSettings:
    """A whole recipe on the chain task that takes seconds; ``changes`` are fields of RunSettings."""
    settings = RunSettings(
        prompt_length=32,
        model=ModelSettings(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, mlp_hidden_size=48),
        mesh=MeshSettings(data=8),
        data=DataSettings(sft_lengths=(1,), rl_lengths=(1, 2), test_lengths=(1,), sft_rows=64, rl_rows=16, test_rows=7),
        sampler=Sampler(length=24, steps=6, block_length=8, temperature=1.0),
        sft=SftSettings(steps=4, batch_size=16, micro_batches=2, log_every=2, optimizer=RUN_OPTIMIZER),
        rl=RlSettings(
            steps=4,
            inner_updates=2,
            micro_batches=2,
            score_batches=2,
            save_rollouts_every=2,
            hints=HintSettings(answer_room=8, chunk_min=1, chunk_max=2, ratio_low=0.5, ratio_high=0.9),
            rollout=RolloutSettings(groups=4, group_size=4, rows_per_program=16),
            optimizer=dataclasses.replace(RUN_OPTIMIZER, learning_rate=1e-3),
        ),
        evaluation=EvaluationSettings(every=3, rows_per_program=8),
        checkpoints=CheckpointSettings(every=2),
        warm_up=False,
    )
    return dataclasses.replace(settings, **changes)


def tensorboard_events(folder: pathlib.Path) -> Iterator[Event]:
    """Those of every file: a length (8 bytes) and its checksum (4), the event and its checksum (4)."""
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file under ``folder`` with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
