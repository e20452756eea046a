"""Collectives read from compiled text: kinds, group sizes, loops multiplied out."""

import jax
import jax.numpy as jnp
import pytest

from igpo_jax.parallel import sharding
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from igpo_jax.planning import hlo

#: As TPU compilers write it: a scan whose condition names its end, a data-dependent loop around it, a reduce-scatter as
#: a fusion, a kernel whose text spreads over lines that begin with brackets.
TPU = """HloModule jit_run, is_scheduled=true

%cond.1 (p.1: (s32[], bf16[2,8])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(5), metadata={op_name="lt"}
  %p.1 = (s32[]{:T(128)}, bf16[2,8]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %constant.7), direction=LT
}

%body.1 (p.2: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %p.2 = (s32[]{:T(128)}, bf16[2,8]{1,0}) parameter(0)
  %kernel = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} custom-call(%p.2), custom_call_target="tpu_custom_call", frontend={
"metadata":"{\\"block\\": 512}"
}}, metadata={op_name="kernel"}
  ROOT %ag.1 = bf16[16,8]{1,0} all-gather(%x), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, metadata={op_name="weights"}
}

%cond.2 (p.3: (s32[], s32[])) -> pred[] {
  %p.3 = (s32[], s32[]) parameter(0)
  %now = s32[] get-tuple-element(%p.3), index=0
  %last = s32[] get-tuple-element(%p.3), index=1
  ROOT %lt.2 = pred[] compare(%now, %last), direction=LT
}

%body.2 (p.4: (s32[], s32[])) -> (s32[], s32[]) {
  %p.4 = (s32[], s32[]) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, bf16[2,8]{1,0}) while(%p.4), condition=%cond.1, body=%body.1
}

%all-reduce-scatter.3 (p.5: f32[16,4]) -> f32[4,4] {
  %p.5 = f32[16,4]{1,0} parameter(0)
  %all-reduce.1 = f32[16,4]{1,0:T(8,128)} all-reduce(%p.5), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %part = f32[4,4]{1,0} dynamic-slice(%all-reduce.1)
}

ENTRY %main.9 (p.6: f32[16,4]) -> f32[] {
  %p.6 = f32[16,4]{1,0} parameter(0)
  %while.2 = (s32[], s32[]) while(%p.6), condition=%cond.2, body=%body.2
  %fusion.1 = f32[4,4]{1,0} fusion(%p.6), kind=kCustom, calls=%all-reduce-scatter.3
  %permute = (f32[16,4]{1,0}, f32[16,4]{1,0}) collective-permute-start(%p.6), source_target_pairs={{0,1},{1,0}}
  ROOT %all-reduce.2 = f32[] all-reduce(%fusion.1), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}
"""


def test_loops_are_multiplied_out():
    sent = {one.kind: one for one in hlo.collectives(TPU, 8, unknown_trips=3)}
    gathered = sent["all-gather"]
    assert (gathered.times, gathered.group, gathered.shape, gathered.name) == (15, 8, "bf16[16,8]", "weights")
    assert gathered.total == 15 * (16 * 8 * 2) * 7 / 8


def test_every_kind_counts_what_a_ring_moves():
    sent = {one.kind: one for one in hlo.collectives(TPU, 8)}
    assert sent["reduce-scatter"].total == 16 * 4 * 4 * 3 / 4
    assert sent["collective-permute"].total == 16 * 4 * 4
    assert sent["all-reduce"].total == 2 * 4 * 7 / 8


def test_kernels_are_found():
    assert hlo.has_call(TPU, "tpu_custom_call") and not hlo.has_call(TPU, "__cudnn$fmhaSoftmax")


@pytest.mark.parametrize(
    ("groups", "size"),
    [("{{0,1},{2,3}}", 2), ("[4,2]<=[8]", 2), ("[1,8]<=[4,2]T(1,0)", 8), ("mesh['a'=2,'b'=4] {'b'}", 4), ("{}", 8)],
)
def test_groups_in_all_their_notations(groups, size):
    line = f"  ROOT %x = f32[8]{{0}} all-gather(%p), replica_groups={groups}, dimensions={{0}}"
    text = f"ENTRY %main (p: f32[1]) -> f32[8] {{\n{line}\n}}\n"
    assert [one.group for one in hlo.collectives(text, 8)] == [size]


def test_a_compiled_program_of_this_machine():
    """A scan that gathers a weight for each of six layers: 6 x 7/8 of the weight, whatever else XLA writes."""
    mesh = make_mesh(MeshSettings(data=1, fsdp=8))
    weights = jax.ShapeDtypeStruct((6, 64, 64), jnp.float32, sharding=sharding.named(mesh, (None, "embed", None)))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=sharding.named(mesh, ("batch", None)))

    def run(x, weights):
        def layer(x, weight):
            return jnp.tanh(x @ sharding.unsharded(weight, ("embed", None))), None

        return jax.lax.scan(layer, x, weights)[0]

    with jax.set_mesh(mesh):
        text = jax.jit(run).lower(x, weights).compile().as_text()
    sent = [one for one in hlo.collectives(text, 8) if one.kind == "all-gather"]
    assert sum(one.total for one in sent) == 6 * 64 * 64 * 4 * 7 / 8


BRANCHES = """HloModule jit_choose

%narrow (p.1: bf16[4,8]) -> bf16[4,16] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  ROOT %ag.1 = bf16[4,16]{1,0} all-gather(%p.1), replica_groups={{0,1}}
}

%wide (p.2: bf16[4,8]) -> bf16[4,32] {
  %p.2 = bf16[4,8]{1,0} parameter(0)
  ROOT %ag.2 = bf16[4,32]{1,0} all-gather(%p.2), replica_groups={{0,1}}
}

ENTRY %main (p.3: bf16[4,8]) -> bf16[4,32] {
  %p.3 = bf16[4,8]{1,0} parameter(0)
  ROOT %chosen = bf16[4,32] conditional(%index, %p.3, %p.3), CALLED
}
"""


@pytest.mark.parametrize(
    "called",
    ["branch_computations={%wide, %narrow}", "true_computation=%narrow, false_computation=%wide"],
)
def test_of_a_conditionals_branches_the_dearest_counts(called):
    (sent,) = hlo.collectives(BRANCHES.replace("CALLED", called), 2)
    assert sent.shape == "bf16[4,32]" and sent.total == 4 * 32 * 2 / 2


CHAINED = """HloModule jit_scan

%start (p.1: bf16[4,8]) -> bf16[4,16] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  %ag.1 = bf16[4,16] all-gather(%p.1), channel_id=14, replica_groups={{0,1}}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.1 = bf16[4,16]{1,0} custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (p.2: bf16[4,8]) -> bf16[4,16] {
  %p.2 = bf16[4,8]{1,0} parameter(0)
  ROOT %ag.2 = bf16[4,16] all-gather(%p.2), channel_id=14, replica_groups={{0,1}}, frontend_attributes={chain_id="0"}
}

%other (p.3: bf16[4,8]) -> bf16[4,16] {
  %p.3 = bf16[4,8]{1,0} parameter(0)
  ROOT %ag.3 = bf16[4,16] all-gather(%p.3), channel_id=15, replica_groups={{0,1}}, frontend_attributes={chain_id="1"}
}

ENTRY %main (p.4: bf16[4,8]) -> bf16[4,16] {
  %p.4 = bf16[4,8]{1,0} parameter(0)
  %begun = bf16[4,16]{1,0} fusion(%p.4), kind=kCustom, calls=%start
  %went_on = bf16[4,16]{1,0} fusion(%p.4), kind=kOutput, calls=%meanwhile
  ROOT %done = bf16[4,16]{1,0} fusion(%p.4), kind=kCustom, calls=%other
}
"""


def test_a_collective_spread_over_fusions_counts_once():
    """As libtpu writes them for v5e: the same channel in every fusion that the collective runs beside."""
    sent = hlo.collectives(CHAINED, 2)
    assert [(one.kind, one.chain, one.total) for one in sent] == [
        ("all-gather", "14", 64.0),
        ("all-gather", "15", 64.0),
    ]


def test_a_switch_compiled_here_counts_once():
    mesh = make_mesh(MeshSettings(data=1, fsdp=2), jax.devices()[:2])

    def project(width):
        def run(x, weight):
            return x[:, :width] @ sharding.constrain(weight, ("length", "length"))[:width]

        return run

    def choose(index, x, weight):
        return jax.lax.switch(index, [project(4), project(8)], x, weight)

    with jax.set_mesh(mesh):
        x, weight = jnp.ones((4, 8)), jax.device_put(jnp.ones((8, 16)), sharding.named(mesh, ("embed", "length")))
        text = jax.jit(choose).lower(0, x, weight).compile().as_text()
    gathered = [one for one in hlo.collectives(text, 2) if one.kind == "all-gather"]
    assert text.count(" all-gather(") + text.count("all-gather-start(") > len(gathered) == 1
