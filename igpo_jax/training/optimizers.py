"""AdamW with a float32 global-norm clip and the learning-rate schedules of the papers.

The decay horizon of a schedule and the step at which a run stops are two numbers: IGPO's 1,440 updates end where the
released code's linear schedule, stretched over ten epochs, still stands at about four fifths of its peak.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from igpo_jax.errors import UserError, check_choice

SCHEDULES = ("wsd", "linear", "constant")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, its schedule and its gradient clip; defaults are those of IGPO's released run script.

    Raises:
      UserError: for a value outside its range.
    """

    learning_rate: float = 5e-7  #: peak learning rate
    schedule: str = "linear"  #: after the warmup: "wsd" (stable, then linear decay), "linear" or "constant"
    warmup_steps: int = 50  #: updates over which the rate grows linearly from 0
    horizon: int = 0  #: update at which the decay has ended; 0 = the step at which the run stops
    decay_fraction: float = 0.1  #: share of the horizon that the decay of "wsd" takes, at its end
    final_learning_rate: float = 0.0  #: rate at the horizon and after it
    b1: float = 0.9  #: decay of Adam's first moment
    b2: float = 0.99  #: decay of Adam's second moment
    eps: float = 1e-8  #: added to the root of the second moment
    weight_decay: float = 0.1  #: decoupled decay of every parameter but norms and biases
    clip_norm: float = 0.2  #: greatest global norm of the gradient; 0 = no clip

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        for name in ("warmup_steps", "horizon", "final_learning_rate", "weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("learning_rate", "eps"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected more than 0")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected a number in [0, 1)")
        if not 0 < self.decay_fraction <= 1:
            raise UserError(f"decay_fraction is {self.decay_fraction}, expected a number in (0, 1]")


def make_schedule(settings: OptimizerSettings, stop_step: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates already made.

    With peak ``p``, final rate ``f``, warmup ``w`` and horizon ``h`` (``stop_step`` where the setting is 0), update
    ``t`` (from 0) uses ``p t / w`` while ``t < w``, and then

    - constant: ``p``;
    - linear: ``f + (p - f) (h - t) / (h - w)``, the schedule of Hugging Face's trainer when ``f`` is 0;
    - wsd: ``p`` until ``h - d``, then ``f + (p - f) (h - t) / d``, with ``d = round(decay_fraction h)``, at least 1;

    and both stay at ``f`` from ``h`` on.

    Args:
      settings: the schedule and its numbers.
      stop_step: update at which the run stops; only the default of the horizon.

    Returns:
      A function of an int32 scalar (or a host int) giving a float32 scalar.

    Raises:
      UserError: where warmup and decay do not fit into the horizon.
    """
    warmup, horizon = settings.warmup_steps, settings.horizon or stop_step
    decay = {"wsd": max(1, round(settings.decay_fraction * horizon)), "linear": horizon - warmup, "constant": 0}
    span = decay[settings.schedule]
    if settings.schedule != "constant" and (span < 1 or warmup + span > horizon):
        raise UserError(
            f"warmup_steps is {warmup} and the decay takes {max(span, 1)} updates, which do not fit into the horizon "
            f"of {horizon} updates; lower warmup_steps or raise horizon"
        )
    peak, final = settings.learning_rate, settings.final_learning_rate

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        rate = jnp.asarray(peak, jnp.float32)
        if span:
            rate = final + (peak - final) * jnp.clip((horizon - step) / span, 0.0, 1.0)
        return jnp.where(step < warmup, peak * step / max(1, warmup), rate)

    return schedule


def global_norm(tree: Any) -> jax.Array:
    """Returns the float32 Euclidean norm over every leaf of ``tree``, whatever the leaves' dtypes; scalar."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient by ``min(1, max_norm / norm)``, with the norm taken in float32."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        del params
        norm = global_norm(updates)
        # The maximum keeps a zero gradient at zero instead of 0/0.
        scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
        return jax.tree.map(lambda g: (g.astype(jnp.float32) * scale).astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def decay_mask(params: Any) -> Any:
    """Returns a tree of bools shaped like ``params``: False for norm weights and biases, which are not decayed.

    Hugging Face's trainer, which the official code uses, draws the same line. It goes by name, because a stacked norm
    weight of shape (layer, width) has the rank of a matrix.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_decayed([_key_name(key) for key in path]), params)


def _is_decayed(names: list[str]) -> bool:
    return names[-1] != "bias" and not any(name.endswith("norm") or name == "ln_f" for name in names)


def _key_name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", key)))


def make_optimizer(settings: OptimizerSettings, stop_step: int) -> optax.GradientTransformation:
    """Returns clip, AdamW and schedule as one transformation.

    The decay is decoupled: ``θ ← θ − lr (m̂ / (√v̂ + eps) + weight_decay θ)``. Both moments have the parameters' dtype,
    which the training state keeps at float32.
    """
    adamw = optax.adamw(
        make_schedule(settings, stop_step),
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        mask=decay_mask,
    )
    if not settings.clip_norm:
        return adamw
    return optax.chain(clip_by_global_norm(settings.clip_norm), adamw)


def optimizer_shardings(optimizer: optax.GradientTransformation, params: Any, shardings: Any) -> Any:
    """Returns the sharding of every leaf of ``optimizer.init(params)``.

    A moment lies where its parameter lies; counters are replicated over the same mesh.

    Args:
      optimizer: the transformation whose state is to be placed.
      params: arrays or ``ShapeDtypeStruct``.
      shardings: tree like ``params`` of ``NamedSharding``.
    """
    mesh = jax.tree.leaves(shardings)[0].mesh
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.eval_shape(optimizer.init, params)
    return optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, state, shardings, transform_non_params=lambda _: replicated
    )
