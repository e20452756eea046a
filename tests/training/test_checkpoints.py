"""Checkpoints come back bit for bit, on any mesh, and past every damage that a file can take."""

import logging
import os
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from igpo_jax.errors import UserError
from igpo_jax.training.checkpoints import Checkpoints, CheckpointSettings

EVERY = CheckpointSettings(every=1, keep_last=2, keep_best=True)


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple
    keys: jax.Array
    frozen: dict | None = None


def mesh_of(fsdp, tensor):
    return jax.make_mesh((fsdp, tensor), ("fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 2)


def make_state(seed, mesh=None, width=8):
    """A state with optimizer moments, bfloat16 and typed keys; sharded where there is a mesh."""
    params = {
        "q_proj": {"weight": jax.random.normal(jax.random.key(seed), (16, width))},
        "ln_f": {"weight": jnp.asarray([1.1, 1e-40, -0.0, 3.0][: width // 2], jnp.bfloat16)},
    }
    optimizer = optax.adamw(1e-3)
    moments = optimizer.update(params, optimizer.init(params), params)[1]
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), 8)
    state = State(jnp.int32(seed), params, (moments, jax.random.key(seed + 1)), keys)
    return jax.tree.map(lambda x: jax.device_put(x, layout(x, mesh)), state) if mesh else state


def layout(x, mesh):
    return NamedSharding(
        mesh, P(*("fsdp", "tensor")[: x.ndim]) if x.ndim == 2 or x.shape == (8,) else P(*[None] * x.ndim)
    )


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def bits(state):
    def raw(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(x) if is_key else x)
        return str(x.dtype), array.shape, array.tobytes()

    return jax.tree.map(raw, state)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path / "new" / "folder", EVERY) as checkpoints:
        assert checkpoints.restore(abstract(state)) is None
        assert checkpoints.save(7, state, {"seconds": 1.5, "names": ["a"]})
    with Checkpoints(tmp_path / "new" / "folder", EVERY) as checkpoints:
        step, restored, extra = checkpoints.restore(abstract(state))
    assert step == 7
    assert bits(restored) == bits(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert extra == {"device_count": 8, "seconds": 1.5, "names": ["a"]}
    draw = jax.random.normal(restored.keys[0], (4,))
    np.testing.assert_array_equal(draw, jax.random.normal(state.keys[0], (4,)))


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_a_sharded_state_comes_back_on_another_mesh(tmp_path, shape):
    state = make_state(3, mesh_of(4, 2))
    target = abstract(make_state(0, mesh_of(*shape)))
    with Checkpoints(tmp_path, EVERY) as checkpoints:
        checkpoints.save(1, state)
        _, restored, _ = checkpoints.restore(target)
    assert bits(restored) == bits(state)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, target)


def test_a_sharded_state_comes_back_on_one_device(tmp_path):
    state = make_state(3, mesh_of(4, 2))
    with Checkpoints(tmp_path, EVERY) as checkpoints:
        checkpoints.save(1, state)
        _, restored, _ = checkpoints.restore(jax.eval_shape(lambda: make_state(0)))
    assert bits(restored) == bits(state)
    assert all(x.sharding.device_set == {jax.devices()[0]} for x in jax.tree.leaves(restored))


def test_an_abstract_mesh_is_the_current_one(tmp_path):
    mesh = mesh_of(4, 2)
    state = make_state(3, mesh)
    with Checkpoints(tmp_path, EVERY) as checkpoints:
        checkpoints.save(1, state)
        with jax.set_mesh(mesh):
            shapes = jax.eval_shape(lambda s: jax.tree.map(lambda x: x, s), state)
            _, restored, _ = checkpoints.restore(shapes)
        assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, state)
        with pytest.raises(ValueError, match=r"jax\.set_mesh"):
            checkpoints.restore(shapes)
        assert checkpoints.steps() == [1]


def test_donation_right_after_a_save_does_not_touch_it(tmp_path):
    state = {"w": jax.device_put(jnp.arange(1 << 18, dtype=jnp.float32), NamedSharding(mesh_of(8, 1), P("fsdp")))}
    expected = np.asarray(state["w"]).copy()
    target = abstract(state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path, EVERY) as checkpoints:
        checkpoints.save(1, state)
        state = overwrite(state)
        jax.block_until_ready(state)
        _, restored, _ = checkpoints.restore(target)
    np.testing.assert_array_equal(restored["w"], expected)


def tiny(value):
    return {"w": jnp.full((4,), float(value))}


def test_the_last_and_the_best_are_kept(tmp_path):
    metrics = [0.1, 0.7, 0.3, None, float("nan"), 0.2]
    with Checkpoints(tmp_path, EVERY) as checkpoints:
        assert checkpoints.best_step() is None
        for step, metric in enumerate(metrics, 1):
            checkpoints.save(step, tiny(step), metric=metric)
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best_step() == 2
    with Checkpoints(tmp_path, EVERY) as checkpoints:
        assert checkpoints.best_step() == 2
        checkpoints.save(7, tiny(7), metric=0.7)
        checkpoints.save(8, tiny(8), metric=0.1)
        checkpoints.save(9, tiny(9))
        # Of equals the later one is the best.
        assert checkpoints.steps() == [7, 8, 9]
        assert float(checkpoints.restore(tiny(0), step=checkpoints.best_step())[1]["w"][0]) == 7.0


def test_a_metric_may_come_after_the_save(tmp_path, caplog):
    with Checkpoints(tmp_path, CheckpointSettings(every=1, keep_last=1)) as checkpoints:
        for step, metric in enumerate([0.1, 0.9, 0.3, float("nan")], 1):
            checkpoints.save(step, tiny(step))
            checkpoints.score(step, metric)
            checkpoints.score(99, 5.0)
        assert checkpoints.steps() == [2, 4] and checkpoints.best_step() == 2
    with Checkpoints(tmp_path, CheckpointSettings(every=1, keep_last=1)) as checkpoints:
        assert checkpoints.best_step() == 2, "it is on disk"
        checkpoints.save(5, tiny(5))
        checkpoints.score(5, 0.95)
        checkpoints.save(6, tiny(6))
        assert checkpoints.steps() == [5, 6]
    (tmp_path / "scores.json").write_text('{"5": ')
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path, EVERY) as checkpoints:
        assert checkpoints.best_step() is None and checkpoints.restore(tiny(0))[0] == 6
    assert f"{tmp_path / 'scores.json'} is damaged" in caplog.text


def test_without_keep_best_only_the_last_are_kept(tmp_path):
    with Checkpoints(tmp_path, CheckpointSettings(every=1, keep_last=3, keep_best=False)) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(step, tiny(step), metric=-float(step))
        assert checkpoints.steps() == [4, 5, 6]


def test_saves_happen_on_schedule_or_by_force_and_once_a_step(tmp_path):
    with Checkpoints(tmp_path, CheckpointSettings(every=3, keep_last=9)) as checkpoints:
        done = [step for step in range(1, 8) if checkpoints.save(step, tiny(step))]
        assert done == [3, 6]
        assert checkpoints.save(7, tiny(7), force=True)
        assert not checkpoints.save(7, tiny(0), force=True)
        assert checkpoints.steps() == [3, 6, 7]
    with Checkpoints(tmp_path, CheckpointSettings(every=0)) as checkpoints:
        assert not checkpoints.save(8, tiny(8))
        # The step it was restored from is on disk already.
        assert checkpoints.restore(tiny(0))[0] == 7
        assert not checkpoints.save(7, tiny(0), force=True)


def test_a_run_that_goes_back_drops_the_future_it_left(tmp_path):
    with Checkpoints(tmp_path, CheckpointSettings(every=1, keep_last=4)) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, tiny(step), metric=float(step))
    with Checkpoints(tmp_path, CheckpointSettings(every=1, keep_last=4)) as checkpoints:
        checkpoints.restore(tiny(0), step=2)
        checkpoints.save(3, tiny(30))
        assert checkpoints.steps() == [1, 2, 3]
        assert checkpoints.best_step() == 2
        assert float(checkpoints.restore(tiny(0))[1]["w"][0]) == 30.0


def test_what_older_runs_did_not_save_gets_its_value(tmp_path):
    with Checkpoints(tmp_path, EVERY) as checkpoints:
        checkpoints.save(1, tiny(1))
        wanted, newer = tiny(0) | {"count": jnp.int32(0)}, {"count": jnp.int32(7)}
        assert {k: v.tolist() for k, v in checkpoints.restore(wanted, newer=newer)[1].items()} == {
            "w": [1.0] * 4,
            "count": 7,
        }
        checkpoints.save(2, tiny(2) | {"count": jnp.int32(5)})
        assert int(checkpoints.restore(wanted, newer=newer)[1]["count"]) == 5
        with pytest.raises(UserError, match="missing from it: other"):
            checkpoints.restore(wanted | {"other": jnp.int32(0)}, newer=newer)


def test_part_of_a_state_can_be_read(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path, EVERY) as checkpoints:
        checkpoints.save(1, state)
        _, part, _ = checkpoints.restore({"params": abstract(state.params)}, subset=True)
    assert bits(part["params"]) == bits(state.params)


@pytest.mark.parametrize(
    ("saved", "wanted", "words"),
    [
        (
            {"params": {"a": jnp.ones(2), "b": jnp.ones(3)}},
            {"params": {"a": jnp.ones(2), "c": jnp.ones(3)}},
            ["missing from it: params/c", "not expected: params/b", "other settings"],
        ),
        (
            {"blocks": {"q_proj": jnp.ones((2, 3))}},
            {"blocks": {"q_proj": jnp.ones((4, 3))}},
            ["different: blocks/q_proj (saved float32[2, 3], expected float32[4, 3])", "another model or vocabulary"],
        ),
        (
            {"blocks": {"q_proj": jnp.ones(3)}},
            {"blocks": {"q_proj": jnp.ones(3, jnp.bfloat16)}},
            ["saved float32[3], expected bfloat16[3]"],
        ),
        (
            {"trainable": {"layers": {"q_proj": {"a": jnp.ones(2)}}}},
            {"trainable": {"q_proj": jnp.ones(2)}},
            ["missing from it: trainable/q_proj", "other LoRA settings"],
        ),
        (
            {"w": jnp.ones(2), "opt_state": [jnp.ones(2)]},
            {"w": jnp.ones(2), "opt_state": [jnp.ones(2), jnp.ones(1)]},
            ["missing from it: opt_state/1", "other optimizer settings"],
        ),
        (
            {f"w{i}": jnp.ones(1) for i in range(9)},
            {"v": jnp.ones(1)},
            ["w0, w1, w2, w3, w4, w5 and 3 more"],
        ),
    ],
)
def test_another_tree_is_refused_by_path_with_a_likely_cause(tmp_path, saved, wanted, words):
    with Checkpoints(tmp_path, EVERY) as checkpoints:
        checkpoints.save(4, saved)
        with pytest.raises(UserError) as caught:
            checkpoints.restore(wanted)
        assert checkpoints.steps() == [4]
    for word in [str(tmp_path / "4"), *words]:
        assert word in str(caught.value)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A folder with the steps 1 and 2 of a sharded state, big enough that arrays lie in files of their own."""
    folder = tmp_path_factory.mktemp("two")
    with Checkpoints(folder, EVERY) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, large(step), {"at": step})
    return folder


def large(seed):
    sharding = NamedSharding(mesh_of(4, 2), P("fsdp", "tensor"))
    weight = jax.random.normal(jax.random.key(seed), (64, 64))
    return {"w": jax.device_put(weight, sharding), "n": jnp.int32(seed), "key": jax.random.key(seed)}


def every_file(folder):
    return sorted(str(path.relative_to(folder)) for path in (folder / "2").rglob("*") if path.is_file())


def damage(path, how):
    data = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "flipped":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        path.write_bytes(data[: len(data) // 2] if how == "halved" else b"")


@pytest.mark.parametrize(
    "how", [pytest.param("deleted", marks=pytest.mark.slow), pytest.param("halved", marks=pytest.mark.slow), "flipped"]
)
def test_no_damage_to_a_file_of_the_newest_goes_unnoticed(two_checkpoints, tmp_path, caplog, how):
    fallbacks = 0
    for number, name in enumerate(every_file(two_checkpoints)):
        folder = tmp_path / str(number)
        shutil.copytree(two_checkpoints, folder)
        damage(folder / name, how)
        caplog.clear()
        with caplog.at_level(logging.WARNING), Checkpoints(folder, EVERY) as checkpoints:
            step, state, extra = checkpoints.restore(abstract(large(0)))
            assert bits(state) == bits(large(step)), name
            assert extra["at"] == step
            warned = f"checkpoint {folder / '2'} cannot be read" in caplog.text
            assert warned == (step == 1), name
            assert "asyncio" not in {record.name for record in caplog.records}, "one warning says it"
            assert checkpoints.steps() == ([1] if warned else [1, 2])
        fallbacks += warned
    assert fallbacks >= 3


def test_training_goes_on_past_a_damaged_newest(two_checkpoints, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    damage(folder / "2" / "extra" / "metadata", "halved")
    with Checkpoints(folder, EVERY) as checkpoints:
        assert checkpoints.restore(abstract(large(0)))[0] == 1
        assert (folder / "2.unreadable").is_dir()
        checkpoints.save(2, large(20))
        assert checkpoints.steps() == [1, 2]
        assert bits(checkpoints.restore(abstract(large(0)))[1]) == bits(large(20))


def test_a_reader_changes_nothing(two_checkpoints, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    (folder / "3.orbax-checkpoint-tmp").mkdir()
    damage(folder / "2" / "extra" / "metadata", "deleted")
    before = sorted(folder.rglob("*"))
    with Checkpoints(folder, EVERY, read_only=True) as checkpoints:
        assert checkpoints.restore(abstract(large(0)))[0] == 1
        with pytest.raises(UserError, match="reading only"):
            checkpoints.save(3, large(3))
    assert sorted(folder.rglob("*")) == before
    with pytest.raises(UserError, match=r"nowhere cannot be read"):
        Checkpoints(tmp_path / "nowhere", EVERY, read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_nothing_readable_is_an_error_and_not_a_fresh_start(two_checkpoints, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    for step in ("1", "2"):
        damage(folder / step / "extra" / "metadata", "emptied")
    with Checkpoints(folder, EVERY) as checkpoints:
        with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(step 2: .*; step 1: "):
            checkpoints.restore(abstract(large(0)))
        assert checkpoints.steps() == [1, 2]


def test_a_step_that_is_not_there_is_refused(two_checkpoints):
    with Checkpoints(two_checkpoints, EVERY, read_only=True) as checkpoints:
        with pytest.raises(UserError, match=r"no checkpoint of step 5; it has \[1, 2\]"):
            checkpoints.restore(abstract(large(0)), step=5)
        assert checkpoints.restore(abstract(large(0)), step=1)[0] == 1


def test_a_half_written_checkpoint_is_named_and_cleaned(two_checkpoints, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    half = folder / "3.orbax-checkpoint-tmp"
    shutil.copytree(folder / "2", half)
    with caplog.at_level(logging.WARNING), Checkpoints(folder, EVERY) as checkpoints:
        assert checkpoints.restore(abstract(large(0)))[0] == 2
        checkpoints.save(3, large(3))
    assert f"{half} was never finished" in caplog.text
    assert not half.exists()


def test_a_folder_that_cannot_be_made_or_written_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be made \(Not a directory\)"):
        Checkpoints(tmp_path / "file" / "run", EVERY)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="is not writable; change its permissions"):
        Checkpoints(tmp_path / "run", EVERY)


def test_a_failed_background_write_is_a_sentence(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, EVERY)

    def full():
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nand much more")

    checkpoints.save(1, tiny(1))
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "wait_until_finished", full)
        with pytest.raises(UserError, match=r"step 1 could not be written .*No space left on device\); check the free"):
            checkpoints.wait()
    checkpoints.close()


@pytest.mark.parametrize(("field", "value"), [("every", -1), ("keep_last", 0)])
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=f"{field} is {value}"):
        CheckpointSettings(**{field: value})
