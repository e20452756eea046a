"""Schedules, clip and AdamW against plain Python formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.errors import UserError
from igpo_jax.training import optimizers
from igpo_jax.training.optimizers import OptimizerSettings


def plain_rate(settings: OptimizerSettings, stop_step: int, t: int) -> float:
    """The schedule in plain Python."""
    peak, final, warmup = settings.learning_rate, settings.final_learning_rate, settings.warmup_steps
    horizon = settings.horizon if settings.horizon else stop_step
    if t < warmup:
        return peak * t / warmup
    if settings.schedule == "constant":
        return peak
    span = horizon - warmup if settings.schedule == "linear" else max(1, round(settings.decay_fraction * horizon))
    if t <= horizon - span:
        return peak
    if t >= horizon:
        return final
    return final + (peak - final) * (horizon - t) / span


@pytest.mark.parametrize("schedule", optimizers.SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize(("horizon", "stop"), [(0, 60), (60, 20), (40, 60)])
@pytest.mark.parametrize("final", [0.0, 2e-4])
def test_schedule_equals_the_formula(schedule, warmup, horizon, stop, final):
    settings = OptimizerSettings(
        learning_rate=3e-3, schedule=schedule, warmup_steps=warmup, horizon=horizon, final_learning_rate=final
    )
    rate = optimizers.make_schedule(settings, stop)
    for t in range(stop + 5):
        assert float(rate(t)) == pytest.approx(plain_rate(settings, stop, t), rel=2e-6, abs=1e-12)
        assert rate(jnp.int32(t)).dtype == jnp.float32


def test_the_horizon_is_not_the_stop_step():
    released = OptimizerSettings(learning_rate=5e-7, schedule="linear", warmup_steps=50, horizon=8000)
    assert float(optimizers.make_schedule(released, 1440)(1440)) / 5e-7 == pytest.approx(0.825, abs=1e-3)
    default = OptimizerSettings(learning_rate=5e-7, schedule="linear", warmup_steps=50)
    assert float(optimizers.make_schedule(default, 1440)(1440)) == 0.0


@pytest.mark.parametrize(
    ("schedule", "warmup", "horizon"), [("linear", 50, 50), ("linear", 51, 50), ("wsd", 46, 50), ("wsd", 0, 0)]
)
def test_a_schedule_that_does_not_fit_is_refused(schedule, warmup, horizon):
    settings = OptimizerSettings(schedule=schedule, warmup_steps=warmup)
    with pytest.raises(UserError, match=f"warmup_steps is {warmup}.*horizon of {horizon} updates"):
        optimizers.make_schedule(settings, horizon)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("eps", -1.0),
        ("warmup_steps", -1),
        ("horizon", -1),
        ("final_learning_rate", -1e-9),
        ("decay_fraction", 0.0),
        ("decay_fraction", 1.5),
        ("b1", 1.0),
        ("b2", -0.1),
        ("weight_decay", -0.1),
        ("clip_norm", -1.0),
        ("schedule", "cosine"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"{field} is '?{value}"):
        OptimizerSettings(**{field: value})


def plain_adamw(settings, rates, params, all_grads, decayed):
    """AdamW with a global-norm clip, in float64."""
    params = {name: np.array(p, np.float64) for name, p in params.items()}
    m = {name: np.zeros_like(p) for name, p in params.items()}
    v = {name: np.zeros_like(p) for name, p in params.items()}
    for t, grads in enumerate(all_grads, 1):
        norm = math.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in grads.values()))
        scale = min(1.0, settings.clip_norm / norm) if settings.clip_norm and norm else 1.0
        for name, gradient in grads.items():
            g = np.asarray(gradient, np.float64) * scale
            m[name] = settings.b1 * m[name] + (1 - settings.b1) * g
            v[name] = settings.b2 * v[name] + (1 - settings.b2) * g * g
            step = (m[name] / (1 - settings.b1**t)) / (np.sqrt(v[name] / (1 - settings.b2**t)) + settings.eps)
            if decayed[name]:
                step = step + settings.weight_decay * params[name]
            params[name] = params[name] - rates[t - 1] * step
    return params


NAMES = {"attn_norm": "attn_norm/weight", "q_proj": "q_proj/weight", "bias": "q_proj/bias", "ln_f": "ln_f/weight"}


def tree(values):
    return {
        "blocks": {
            "attn_norm": {"weight": values["attn_norm"]},
            "q_proj": {"weight": values["q_proj"], "bias": values["bias"]},
        },
        "ln_f": {"weight": values["ln_f"]},
    }


def flat(params):
    blocks = params["blocks"]
    return {
        "attn_norm": blocks["attn_norm"]["weight"],
        "q_proj": blocks["q_proj"]["weight"],
        "bias": blocks["q_proj"]["bias"],
        "ln_f": params["ln_f"]["weight"],
    }


@pytest.mark.parametrize("clip_norm", [0.0, 0.2, 1e6])
def test_updates_equal_plain_adamw(clip_norm):
    settings = OptimizerSettings(learning_rate=1e-2, warmup_steps=2, schedule="linear", clip_norm=clip_norm)
    rng = np.random.default_rng(0)
    shapes = {"attn_norm": (3, 4), "q_proj": (3, 4, 5), "bias": (3, 5), "ln_f": (4,)}
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    grads = [{name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()} for _ in range(6)]
    optimizer = optimizers.make_optimizer(settings, 10)
    params = jax.tree.map(jnp.asarray, tree(start))
    state = optimizer.init(params)
    for gradient in grads:
        updates, state = jax.jit(optimizer.update)(tree(gradient), state, params)
        params = optax.apply_updates(params, updates)
    rates = [plain_rate(settings, 10, t) for t in range(6)]
    decayed = {"attn_norm": False, "q_proj": True, "bias": False, "ln_f": False}
    expected = plain_adamw(settings, rates, start, grads, decayed)
    for name, value in flat(params).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=2e-6)


def test_norms_and_biases_do_not_decay_whatever_their_rank():
    params = tree({"attn_norm": jnp.ones((3, 4)), "q_proj": jnp.ones((3, 4, 5)), "bias": 1.0, "ln_f": jnp.ones(4)})
    assert flat(optimizers.decay_mask(params)) == {"attn_norm": False, "q_proj": True, "bias": False, "ln_f": False}
    others = {"wte": {"weight": 1}, "blocks": {"ff_norm": {"weight": 1}}, "layers": {"q_proj": {"a": 1, "b": 1}}}
    assert optimizers.decay_mask(others) == {
        "wte": {"weight": True},
        "blocks": {"ff_norm": {"weight": False}},
        "layers": {"q_proj": {"a": True, "b": True}},
    }


def test_the_norm_is_taken_in_float32():
    # In bfloat16 the square of 256 ones would stop growing at 256 long before their sum of 512.
    grads = {"a": jnp.full((300,), 1.0, jnp.bfloat16), "b": jnp.full((4096,), 1.0, jnp.bfloat16)}
    assert float(optimizers.global_norm(grads)) == pytest.approx(math.sqrt(4396), rel=1e-6)
    clipped, _ = optimizers.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    assert clipped["a"].dtype == jnp.bfloat16
    assert float(clipped["a"][0]) == pytest.approx(1 / math.sqrt(4396), rel=4e-3)


def test_the_clip_leaves_small_and_zero_gradients_alone():
    clip = optimizers.clip_by_global_norm(5.0)
    small = {"a": jnp.array([3.0, 4.0])}
    np.testing.assert_array_equal(clip.update(small, optax.EmptyState())[0]["a"], small["a"])
    np.testing.assert_array_equal(clip.update({"a": jnp.zeros(3)}, optax.EmptyState())[0]["a"], np.zeros(3))
    large, _ = clip.update({"a": jnp.array([30.0, 40.0])}, optax.EmptyState())
    np.testing.assert_allclose(large["a"], [3.0, 4.0], rtol=1e-6)


def test_optimizer_state_lies_where_the_parameters_lie():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    specs = {"q_proj": {"weight": P("fsdp", "tensor")}, "ln_f": {"weight": P(None)}}
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))
    host = {"q_proj": {"weight": jnp.arange(32.0).reshape(8, 4)}, "ln_f": {"weight": jnp.ones(4)}}
    params = jax.device_put(host, shardings)
    optimizer = optimizers.make_optimizer(OptimizerSettings(learning_rate=0.1, warmup_steps=0), 10)
    placed = optimizers.optimizer_shardings(optimizer, jax.eval_shape(lambda: host), shardings)
    state = jax.jit(optimizer.init, out_shardings=placed)(params)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        expected = P("fsdp", "tensor") if "q_proj" in name else (P(None) if "ln_f" in name else P())
        assert leaf.sharding == NamedSharding(mesh, expected), name
    assert sum("q_proj" in jax.tree_util.keystr(path) for path, _ in leaves) == 2

    with jax.set_mesh(mesh):
        updates, after = jax.jit(optimizer.update)(params, state, params)
    alone, _ = optimizer.update(host, optimizer.init(host), host)
    np.testing.assert_allclose(updates["q_proj"]["weight"], alone["q_proj"]["weight"], rtol=1e-6)
    assert jax.tree.map(lambda x: x.sharding, after) == jax.tree.map(lambda x: x.sharding, state)
