"""Plans of a tiny run, compiled for this machine's devices in the place of a slice's."""

import dataclasses
import json

import jax
import pytest

from igpo_jax.errors import UserError
from igpo_jax.models import flops, llada, lora
from igpo_jax.models.config import Compute
from igpo_jax.models.params import linear_shapes
from igpo_jax.parallel import sharding
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from igpo_jax.planning import compiling, estimate, record, report, topology
from igpo_jax.planning.programs import Abstract, model_config, programs
from igpo_jax.training import optimizers, rl, state
from tests.rl.rollout_cases import CONFIG
from tests.training import tiny

SLICE = topology.parse("v6e:2x4")
SETTINGS = tiny.run_settings(mesh=MeshSettings(data=1, fsdp=8), compute=Compute(remat="full"))


def rl_only(settings=SETTINGS, **changes):
    return dataclasses.replace(
        settings, sft=dataclasses.replace(settings.sft, steps=0), rl=dataclasses.replace(settings.rl, **changes)
    )


@pytest.fixture
def here(monkeypatch):
    """The devices of this machine stand for those of a slice; its compiler takes no TPU options."""
    monkeypatch.setattr(compiling, "open_devices", lambda _: jax.devices("cpu")[:8])
    monkeypatch.setattr(compiling, "_options", lambda *_: {})


@pytest.mark.parametrize("settings", [lora.LoraSettings(), lora.LoraSettings(rank=8)], ids=["full", "lora"])
def test_the_abstract_state_is_the_real_one(settings):
    """Same leaves, shapes, dtypes and places as the state that training makes."""
    mesh = make_mesh(MeshSettings(data=1, fsdp=4, tensor=2))
    abstract = Abstract(SETTINGS, llada.Model(CONFIG), mesh)
    optimizer = optimizers.make_optimizer(SETTINGS.rl.optimizer, 10)
    planned = abstract.state(settings, optimizer)
    with jax.set_mesh(mesh):
        placed = jax.device_put(tiny.host_params(), llada.shardings(CONFIG, mesh))
        real = state.create(placed, settings, CONFIG, optimizer, jax.random.key(0), mesh)
    assert jax.tree.structure(planned) == jax.tree.structure(real)
    for mine, yours in zip(jax.tree.leaves(planned), jax.tree.leaves(real), strict=True):
        assert (mine.shape, mine.dtype) == (yours.shape, yours.dtype)
        assert mine.sharding.is_equivalent_to(yours.sharding, mine.ndim)
    assert estimate.on_one_device(planned) == sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(real)
    )


@pytest.mark.slow
def test_a_whole_plan(here):
    plan = compiling.make_plan(rl_only(lora=lora.LoraSettings(rank=8)), SLICE, "tiny")
    assert [(program.name, program.runs) for program in plan.programs] == [
        ("rollout", 1),
        ("scoring", 2),
        ("update", 2),
    ]
    assert plan.fits and plan.mesh == {"data": 1, "fsdp": 8, "tensor": 1} and plan.attention == "xla"
    rollout, scoring, update = plan.programs
    for program in plan.programs:
        assert program.memory.arguments > 0 and program.traffic.by_kind["all-gather"] > 0
        assert program.headroom == pytest.approx(31.25 - program.memory.total)
        assert program.seconds >= program.compute_seconds > 0 and 0 < program.mfu_ceiling <= 1
    # The update takes the place of its state, and holds nothing that the rollout would not have beside it.
    assert update.memory.donated > 0 and rollout.memory.donated == 0
    assert rollout.memory.beside > update.memory.beside
    config = model_config(SETTINGS, 1)
    assert scoring.flops == flops.forward_flops(config, 16, 32 + 24, 24, lora.LoraSettings(rank=8))
    text = report.render(json.loads(record.to_json(plan)))
    assert "It fits: " in text and "all-gather" in text and f"jax {jax.__version__}" in text


@pytest.mark.parametrize(
    ("estimator", "scorings", "hidden"), [("mean_field", 2, 1), ("prompt_masking", 4, 2), ("structured_noising", 4, 1)]
)
def test_what_an_estimator_hides_is_planned_as_a_run_has_it(estimator, scorings, hidden):
    """Two inner updates, and beside the rollout's four masks and the kept tokens those that the estimator draws."""
    settings = rl_only(estimator=estimator)
    mesh = make_mesh(MeshSettings(1, 8, 1))
    abstract = Abstract(settings, llada.Model(CONFIG), mesh)
    with jax.set_mesh(mesh):
        scoring, update = programs(abstract)[1:]
        drawn = rl.make_masks(settings.rl)(jax.random.key(0), 0, 0, sharding.shard_batch(tiny.rollout_batch(), mesh))
        scored, learnt = (flags(program.lower()) for program in (scoring, update))
    assert scoring.runs == scorings
    assert len(scored) == 4 + hidden and len(learnt) == 5 + (hidden if scorings > 2 else 0)
    for mine, yours in zip(scored[4:], jax.tree.leaves(drawn), strict=True):
        assert mine.shape[0] == yours.shape[0] == settings.rl.rollout.rows
        assert mine.sharding.spec == yours.sharding.spec


def flags(lowered):
    """The boolean arguments of a program."""
    return [aval for aval in jax.tree.leaves(lowered.in_avals) if aval.dtype == bool]


def test_what_a_search_compiled_is_not_compiled_again(here, monkeypatch):
    """The winner's update goes into the plan as it is."""
    abstract = compiling.open_plan(rl_only(), SLICE)
    update = compiling.compile_one(programs(abstract)[-1], abstract, SLICE)
    monkeypatch.setattr(compiling, "programs", lambda _: programs(abstract)[-1:])
    monkeypatch.setattr(compiling, "compile_one", None)
    notes = []
    plan = compiling.make_plan(rl_only(), SLICE, note=notes.append, ready=[update])
    assert plan.programs == (update[0],) and plan.attention == "xla" and not notes


def test_rollout_traffic_is_the_weights_once_a_forward(here):
    """Six denoising steps, each with every matrix of the blocks gathered once: 7/8 of it comes over the links."""
    abstract = compiling.open_plan(rl_only(), SLICE)
    target = next(one for one in programs(abstract) if one.name == "rollout")
    result, _ = compiling.compile_one(target, abstract, SLICE)
    config = abstract.model.config
    blocks = config.n_layers * sum(inputs * outputs for inputs, outputs, _, _ in linear_shapes(config).values())
    ends = 2 * config.d_model * config.embedding_size
    a_matrix_weight = 6 * 4 * 7 / 8
    assert a_matrix_weight * blocks <= result.traffic.by_kind["all-gather"] <= a_matrix_weight * 1.1 * (blocks + ends)


def test_a_state_that_exceeds_the_device_needs_no_compiler(here, monkeypatch):
    """Master, two moments and reference, each in float32: 16 bytes for each of 8.0156 billion parameters."""
    chips = jax.devices("cpu")[:4]
    monkeypatch.setattr(compiling, "open_devices", lambda _: chips)
    settings = rl_only(
        dataclasses.replace(
            SETTINGS, model=dataclasses.replace(SETTINGS.model, shape="llada_8b"), mesh=MeshSettings(data=1, fsdp=4)
        )
    )
    reason = compiling.hopeless(settings, topology.parse("v5e:2x2"))
    assert "take 29.9 GiB of each device's 15.75" in reason and "--config.rl.lora.rank=128" in reason
    assert not compiling.hopeless(settings, topology.parse("v5p:2x2x1"))


def test_what_has_no_place_says_so(here, monkeypatch):
    """A compiler's refusal is a plan, not an error; the shortfall is in its message."""
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.50G of 31.25G hbm. Exceeded by 9.25G."

    class Refused:
        in_avals = ()

        def compile(self, **_):
            raise RuntimeError(message)

    abstract = compiling.open_plan(rl_only(), SLICE)
    target = dataclasses.replace(programs(abstract)[-1], lower=Refused)
    result, _ = compiling.compile_one(target, abstract, SLICE)
    assert not result.fits and result.memory is None and 40.5 <= result.needed < 40.6
    assert result.headroom == pytest.approx(31.25 - result.needed)
    monkeypatch.setattr(compiling, "programs", lambda _: [target])
    plan = compiling.make_plan(rl_only(), SLICE)
    text = report.render(json.loads(record.to_json(plan)))
    assert not plan.fits and "DOES NOT FIT" in text and "First change to try: " in text


@pytest.mark.parametrize(
    ("words", "alone"),
    [("the total memory required for HLO temporaries (40.00G) exceeds available HBM (31.25G).", 42.0), ("", None)],
)
def test_a_refusal_that_names_temporaries_alone_or_nothing(here, words, alone):
    """Arguments are added to temporaries; a plan without any number is still JSON that every reader takes."""
    argument = jax.ShapeDtypeStruct((2**29,), "float32")  # 2 GiB

    class Refused:
        in_avals = (argument,)

        def compile(self, **_):
            raise RuntimeError(f"RESOURCE_EXHAUSTED: Ran out of memory on HBM, {words}")

    abstract = compiling.open_plan(rl_only(), SLICE)
    target = dataclasses.replace(programs(abstract)[-1], lower=Refused, beside=None)
    result, _ = compiling.compile_one(target, abstract, SLICE)
    assert not result.fits and result.needed == alone
    assert result.headroom == (None if alone is None else pytest.approx(31.25 - alone))
    assert "Infinity" not in json.dumps(dataclasses.asdict(result))


def test_other_compile_errors_are_not_taken_for_memory(here):
    class Broken:
        def compile(self, **_):
            raise RuntimeError("INTERNAL: no such instruction")

    abstract = compiling.open_plan(rl_only(), SLICE)
    with pytest.raises(RuntimeError, match="no such instruction"):
        compiling.compile_one(dataclasses.replace(programs(abstract)[0], lower=Broken), abstract, SLICE)


@pytest.mark.parametrize(
    ("changes", "short", "begins"),
    [
        ({}, ["rollout"], "--config.rl.rollout.rows_per_program=8"),
        ({}, ["scoring"], "--config.rl.score_batches=4"),
        ({}, ["update"], "--config.rl.micro_batches=4"),
        ({"compute": Compute(remat="context")}, ["update"], "--config.compute.remat=full"),
        ({"mesh": MeshSettings(data=16)}, ["update"], "--config.rl.lora.rank=128"),
        ({}, ["sft update"], "--config.sft.micro_batches="),
        ({}, ["scoring", "rollout"], "--config.rl.score_batches=4"),
        # Parts of an update would not help the rollout.
        ({"mesh": MeshSettings(data=16)}, ["rollout"], "--config.rl.lora.rank=128"),
    ],
)
def test_the_first_change_to_try(changes, short, begins):
    settings = dataclasses.replace(SETTINGS, **changes)
    shards = 16 if "mesh" in changes else 4
    assert report.advice(settings, short, shards).startswith(begins)


def test_a_run_that_only_evaluates_takes_fewer_questions_at_a_time():
    settings = rl_only(steps=0)
    rows = settings.evaluation.rows_per_program
    assert report.advice(settings, ["rollout"], 2).startswith(f"--config.evaluation.rows_per_program={rows // 2}")
    assert report.advice(settings, ["rollout"], rows).startswith("a larger slice")


def test_the_last_resort_is_a_larger_slice():
    settings = rl_only(lora=lora.LoraSettings(rank=8))
    assert report.advice(settings, ["update"], 16).startswith("a larger slice")


def test_the_shape_needs_no_checkpoint():
    named = dataclasses.replace(SETTINGS.model, shape="llada_8b", checkpoint="models/not-here")
    config = model_config(dataclasses.replace(SETTINGS, model=named), 1)
    assert sum(leaf.size for leaf in jax.tree.leaves(llada.abstract(config))) == 8_015_581_184


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": MeshSettings(fsdp=3)}, "mesh .* needs a multiple of 3 devices but found 8"),
        ({"mesh": MeshSettings(data=4, fsdp=4)}, "mesh .* needs 16 devices but found 8"),
        ({"evaluation": dataclasses.replace(SETTINGS.evaluation, rows_per_program=12)}, "12 rows, which do not divide"),
        ({"mesh": MeshSettings(data=1, tensor=8)}, "mesh .* needs 8 devices|does not divide over mesh.tensor"),
    ],
)
def test_a_mesh_that_does_not_divide_stops_before_any_compiler(changes, message, monkeypatch):
    monkeypatch.setattr(compiling, "open_devices", lambda _: jax.devices("cpu")[:8])
    with pytest.raises(UserError, match=message) as error:
        compiling.open_plan(dataclasses.replace(SETTINGS, **changes), SLICE)
    assert "\n" not in str(error.value)


def test_a_tensor_group_over_several_hosts_is_refused_as_a_run_would(here, monkeypatch):
    seen = []
    monkeypatch.setattr(compiling, "check_groups", seen.append)
    compiling.open_plan(SETTINGS, SLICE)
    assert not seen, "eight chips are one host"
    monkeypatch.setattr(compiling, "LARGEST_HOST", 4)
    assert seen == [compiling.open_plan(SETTINGS, SLICE).mesh]


def test_hash_follows_what_decides_and_nothing_else():
    other = dataclasses.replace(SETTINGS, seed=5, name="another")
    assert record.plan_hash(other) == record.plan_hash(SETTINGS)
    larger = dataclasses.replace(SETTINGS, rl=dataclasses.replace(SETTINGS.rl, micro_batches=1))
    assert record.plan_hash(larger) != record.plan_hash(SETTINGS)


def test_a_stored_plan_is_read_back_and_a_verdict_is_none(tmp_path):
    record.write('{"programs": [], "plan_hash": "a"}', tmp_path / "new" / "cell.json")
    assert record.read(tmp_path / "new" / "cell.json") == {"programs": [], "plan_hash": "a"}
    with pytest.raises(UserError, match="small has no plan: it cannot fit"):
        record.write('{"fits": false, "reason": "it cannot fit"}', tmp_path / "small.json")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_file_that_is_no_plan(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    for name in ("a.json", "missing.json"):
        with pytest.raises(UserError, match="plan"):
            record.read(tmp_path / name)
