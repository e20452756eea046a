"""Seconds, rates, utilisation and goodput are what their definitions say; unknown devices have no utilisation."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from igpo_jax.models import flops
from igpo_jax.models.lora import LoraSettings
from igpo_jax.parallel import devices
from igpo_jax.rl.sampling import SamplingCost
from igpo_jax.training import accounting
from igpo_jax.training.accounting import Accounts, Work
from igpo_jax.training.metrics import Row, is_wall_clock
from tests.rl.rollout_cases import CONFIG, SAMPLER

WORK = Work.of(CONFIG, SAMPLER, 5, LoraSettings())


def mesh_like(kind, count=4):
    device = types.SimpleNamespace(device_kind=kind)
    return types.SimpleNamespace(devices=np.array([device] * count))


def accounts(kind="NVIDIA H100 80GB HBM3", **options):
    return Accounts(WORK, SAMPLER.length, mesh_like(kind), **options)


def test_work_counts_the_head_on_a_block_and_both_passes_of_guidance():
    length = 5 + SAMPLER.length
    assert WORK.row_forward == flops.forward_flops(CONFIG, 1, length, SAMPLER.block_length)
    assert WORK.row_update == flops.update_flops(CONFIG, 1, length, SAMPLER.length)
    guided = Work.of(CONFIG, dataclasses.replace(SAMPLER, cfg_scale=1.5), 5, LoraSettings())
    assert guided.row_forward == 2 * WORK.row_forward and guided.row_update == WORK.row_update


def test_a_row_holds_seconds_rates_per_device_and_utilisation():
    books = accounts(first_start=0.0)
    books.sampled({"rollout": 3.0, "inpaint": 1.0, "judge": 2.5}, SamplingCost(2, 40, 12, 480, 400))
    books.add("update", 2.0)
    books.updated(64)
    row = books.row()
    assert {name: row[f"{name}_seconds"] for name in ("rollout", "inpaint", "judge", "update")} == {
        "rollout": 3.0,
        "inpaint": 1.0,
        "judge": 2.5,
        "update": 2.0,
    }
    assert row["rollout_sequences_per_second"] == pytest.approx(40 / 4 / 4)
    assert row["rollout_tokens_per_second"] == pytest.approx(40 * 16 / 4 / 4)
    assert row["rollout_forwards_per_second"] == pytest.approx(480 / 4 / 4)
    peak = devices.DEVICES["h100"].peak_bf16_flops
    assert row["mfu_rollout"] == pytest.approx(480 * WORK.row_forward / (4 * 4 * peak))
    assert row["update_sequences_per_second"] == pytest.approx(64 / 2 / 4)
    assert row["mfu_update"] == pytest.approx(64 * WORK.row_update / (2 * 4 * peak))
    assert all(is_wall_clock(name) for name in row)
    again = books.row()
    assert set(again) == {"goodput"}, "every row starts anew"


def test_an_unknown_device_is_named_and_has_no_utilisation(capsys):
    books = accounts("cpu")
    books.sampled({"rollout": 3.0}, SamplingCost(2, 40, 12, 480, 400))
    books.add("update", 2.0)
    books.updated(64)
    assert not [name for name in books.row() if name.startswith("mfu_")]
    accounting.note_unknown_device(mesh_like("cpu"))
    accounting.note_unknown_device(mesh_like("TPU v5p"))
    assert capsys.readouterr().out == "unknown device 'cpu': its peak is not in the table, so MFU is not shown\n"


def test_the_order_of_phases_is_their_exclusive_time():
    """A program that is compiled inside a phase counts as compiling."""
    books = accounts("cpu")
    with books.phase("score"):
        jax.block_until_ready(jax.jit(lambda x: jax.numpy.cos(x) * 2.75)(np.ones(5)))
    row = books.row()
    assert row["compile_seconds"] > 0 and row["score_seconds"] >= 0


def rows_of(*values):
    return [Row(stage, step, 0.0, dict(row)) for step, (stage, row) in enumerate(values, 1)]


def test_goodput_counts_productive_seconds_since_the_first_start(monkeypatch):
    """Two starts: 30 seconds of steps stand in the rows, the third minute of wall time has just ended."""
    rows = rows_of(
        ("sft", {"update_seconds": 5.0, "data_seconds": 2.0, "compile_seconds": 9.0}),
        ("igpo", {"rollout_seconds": 10.0, "judge_seconds": 8.0, "judge_wait_seconds": 1.0, "score_seconds": 5.0}),
        ("igpo", {"inpaint_seconds": 4.0, "update_seconds": 5.0, "evaluate_seconds": 1.0, "checkpoint_seconds": 3.0}),
    )
    assert accounting.productive_seconds(rows) == 30.0
    books = accounts("cpu", productive=30.0, first_start=1000.0)
    monkeypatch.setattr(accounting.time, "time", lambda: 1180.0)
    books.add("update", 15.0)
    books.add("checkpoint", 40.0)
    assert books.row()["goodput"] == pytest.approx(45 / 180)
    monkeypatch.setattr(accounting.time, "time", lambda: 1200.0)
    books.add("update", 5.0)
    assert books.row()["goodput"] == pytest.approx(50 / 200)


def test_the_table_has_a_column_a_stage_and_a_line_a_phase():
    rows = rows_of(
        ("sft", {"update_seconds": 65.0}),
        ("igpo", {"rollout_seconds": 10.0, "update_seconds": 5.0, "judge_seconds": 2.0}),
        ("igpo", {"rollout_seconds": 20.0, "update_seconds": 5.0}),
        ("igpo/eval", {"pass_at_1": 1.0}),
    )
    lines = accounting.table(rows, ("sft", "igpo")).splitlines()
    assert lines[0].split() == ["time", "in", "sft", "igpo"]
    assert [line.split() for line in lines[2:]] == [
        ["sampling,", "plain", "round", "30s"],
        ["updates", "1m", "05s", "10s"],
        ["judging", "(beside", "the", "sampling)", "2.0s"],
    ]
    assert accounting.table([], ("sft",)) == ""
