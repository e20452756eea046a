"""What training carries from step to step, and how a policy is put together from it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from igpo_jax.models import llada, lora
from igpo_jax.parallel import sharding
from igpo_jax.training.optimizers import optimizer_shardings


def _none() -> np.ndarray:
    return np.zeros((), np.int32)


@flax.struct.dataclass
class TrainState:
    """Parameters under training, optimiser state and, under LoRA, the frozen base beside them."""

    step: jax.Array  # () int32, updates made or skipped
    trainable: Any  # Params (full fine-tuning) or Adapters (LoRA); float32 master copies
    opt_state: Any  # optax state of ``trainable``
    frozen: Any  # Params under LoRA, None otherwise
    skipped: Any = dataclasses.field(default_factory=_none)  # () int32, updates skipped: loss or gradient not finite
    skipped_in_a_row: Any = dataclasses.field(default_factory=_none)  # () int32, those since the last update made


class CompiledUpdate:
    """A jitted (state, ...) -> (new state, metrics) that donates its state, all but the frozen parameters.

    The caller may hold those as the reference policy; they pass by the update untouched.
    """

    def __init__(self, step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]):
        def moved(state: TrainState, frozen: Any, *args: Any) -> tuple[TrainState, dict[str, jax.Array]]:
            state, metrics = step(dataclasses.replace(state, frozen=frozen), *args)
            return dataclasses.replace(state, frozen=None), metrics

        self._compiled = jax.jit(moved, donate_argnums=0)

    def __call__(self, state: TrainState, *args: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        """Runs the update; ``state`` is gone afterwards."""
        new, metrics = self._compiled(dataclasses.replace(state, frozen=None), state.frozen, *args)
        return dataclasses.replace(new, frozen=state.frozen), metrics

    def lower(self, state: Any, *args: Any) -> jax.stages.Lowered:
        """The same program for arguments of which only shapes and shardings are known."""
        return self._compiled.lower(dataclasses.replace(state, frozen=None), state.frozen, *args)


def compile_update(step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]) -> CompiledUpdate:
    """Compiles (state, ...) -> (new state, metrics), see CompiledUpdate."""
    return CompiledUpdate(step)


def release(params: llada.Params) -> None:
    """Frees the device memory of parameters that nobody reads again, whoever still names them."""
    for leaf in jax.tree.leaves(params):
        leaf.delete()


def policy_of(trainable: Any, frozen: Any) -> llada.Policy:
    """The policy that a forward pass takes; under LoRA the base and the adapters side by side."""
    if frozen is None:
        return llada.Policy(params=trainable)
    return llada.Policy(params=frozen, adapters=trainable)


def reference_of(state: TrainState, start: Any) -> llada.Policy:
    """The reference policy: the base without adapters under LoRA (costs nothing), else ``start``."""
    return llada.Policy(params=start if state.frozen is None else state.frozen)


def merged_params(state: TrainState) -> Any:
    """Plain parameters of the trained policy, adapters merged in: what evaluation, export and the next stage take."""
    if state.frozen is None:
        return state.trainable
    return lora.merge(state.frozen, state.trainable)


def create(
    params: llada.Params,
    settings: lora.LoraSettings,
    config: llada.ModelConfig,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    mesh: jax.sharding.Mesh,
) -> TrainState:
    """A fresh state: all parameters trainable at rank 0, otherwise new adapters beside frozen parameters.

    Args:
      params: starting parameters, placed on the mesh already.
      settings: LoRA settings; rank 0 means full fine-tuning.
      config: the model's configuration.
      optimizer: the optax transformation whose state is made.
      key: for the adapters' initialisation.
      mesh: where everything is born, sharded.
    """
    if settings.rank:
        shardings: Any = lora.adapter_shardings(settings, config, mesh)
        make = jax.jit(functools.partial(lora.init_adapters, settings=settings, config=config), out_shardings=shardings)
        trainable, frozen = make(key), params
    else:
        # Copies: the update donates its state, and the caller keeps its parameters (the reference policy).
        shardings = llada.shardings(config, mesh)
        trainable, frozen = jax.tree.map(jnp.copy, params), None
    opt_shardings = optimizer_shardings(optimizer, trainable, shardings)
    opt_state = jax.jit(optimizer.init, out_shardings=opt_shardings)(trainable)
    step, skipped, skipped_in_a_row = (sharding.replicate(np.int32(0), mesh) for _ in range(3))
    return TrainState(step, trainable, opt_state, frozen, skipped, skipped_in_a_row)
