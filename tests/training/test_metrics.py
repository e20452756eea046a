"""The log survives kills: no step twice, no half line, no number lost."""

import json
import logging
import math

import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.training import metrics
from igpo_jax.training.metrics import MetricsLog, read_metrics
from tests.training import tiny


def steps(directory, stage):
    return [row.step for row in read_metrics(directory) if row.stage == stage]


def test_rows_come_back_as_they_were_written(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("sft", 1, {"loss": 0.1 + 0.2, "rows": 3})
        log.write("rl", 1, {"reward": np.float32(0.5), "kl": jnp.float32(1.5)})
    first, second = read_metrics(tmp_path)
    assert (first.stage, first.step, first.values) == ("sft", 1, {"loss": 0.1 + 0.2, "rows": 3.0})
    assert (second.stage, second.step, second.values) == ("rl", 1, {"reward": 0.5, "kl": 1.5})
    assert 0 < first.time <= second.time


def test_every_line_is_strict_json_even_with_nan(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("rl", 1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})

    def refuse(name):
        raise AssertionError(name)

    line = (tmp_path / metrics.FILE).read_text()
    fields = json.loads(line, parse_constant=refuse)
    assert list(fields) == ["stage", "step", "time", "a", "b", "c", "d"]
    values = read_metrics(tmp_path)[0].values
    assert math.isnan(values["a"])
    assert (values["b"], values["c"], values["d"]) == (math.inf, -math.inf, 1.0)


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("rl", 1, {"a": 1})
        assert steps(tmp_path, "rl") == [1]


def test_a_resumed_stage_has_each_step_once(tmp_path):
    with MetricsLog(tmp_path) as log:
        for stage in ("sft", "rl"):
            for step in range(1, 7):
                log.write(stage, step, {"run": 1.0})
    with MetricsLog(tmp_path) as log:
        assert log.truncate("rl", 4) == 2
        for step in range(5, 9):
            log.write("rl", step, {"run": 2.0})
    assert steps(tmp_path, "sft") == [1, 2, 3, 4, 5, 6]
    assert steps(tmp_path, "rl") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row.values["run"] for row in read_metrics(tmp_path) if row.stage == "rl"] == [1.0] * 4 + [2.0] * 4


@pytest.mark.parametrize(("step", "removed"), [(0, 3), (3, 0), (9, 0)])
def test_truncate_counts_what_it_removes(tmp_path, step, removed):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for n in (1, 2, 3):
            log.write("rl", n, {"a": n})
        assert log.truncate("rl", step) == removed
        assert log.truncate("other", 0) == 0


@pytest.mark.parametrize("kept", [1, 20, -2, -1])
def test_a_line_cut_by_a_kill_is_dropped_by_name(tmp_path, caplog, kept):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write("rl", 1, {"a": 1})
        log.write("rl", 2, {"größe": 2})
    path = tmp_path / metrics.FILE
    first, second = path.read_bytes().splitlines()
    path.write_bytes(first + b"\n" + second[:kept])
    with caplog.at_level(logging.WARNING), MetricsLog(tmp_path, tensorboard=False) as log:
        log.write("rl", 2, {"a": 3})
    assert f"{path} line 2 was cut" in caplog.text
    assert steps(tmp_path, "rl") == [1, 2]
    assert path.read_bytes().endswith(b"\n")


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path, caplog):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write("rl", 1, {"a": 1})
    path = tmp_path / metrics.FILE
    path.write_bytes(path.read_bytes().rstrip())
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write("rl", 2, {"a": 2})
    assert steps(tmp_path, "rl") == [1, 2]
    assert caplog.text == ""


@pytest.mark.parametrize(
    "line", ['{"stage": "rl"', '{"step": 1}', "[1]", '{"stage": "rl", "step": 1, "time": 0, "a": [1]}']
)
def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path, line):
    good = '{"stage": "rl", "step": 1, "time": 0.0}\n'
    (tmp_path / metrics.FILE).write_text(good + line + "\n" + good)
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is not a row"):
        read_metrics(tmp_path)


def test_no_file_is_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_the_log_knows_what_it_holds(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step in (1, 2, 3):
            log.write("rl", step, {"a": step})
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.truncate("rl", 2)
        log.write("sft", 3, {"a": 1})
        assert [log.has("rl", step) for step in (1, 2, 3)] == [True, True, False]
        assert log.has("sft", 3) and [row.step for row in log.rows("rl")] == [1, 2]
        assert log.sync()


@pytest.mark.parametrize("name", ["stage", "step", "time"])
def test_a_metric_may_not_take_a_columns_name(tmp_path, name):
    with MetricsLog(tmp_path, tensorboard=False) as log, pytest.raises(UserError, match=f"'{name}'"):
        log.write("rl", 1, {name: 1.0})


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run/metrics\.jsonl cannot be written"):
        MetricsLog(tmp_path / "file" / "run")


def test_tensorboard_gets_finite_values_and_the_purge_of_a_resumed_step(tmp_path):
    for resumed in (0, 2):
        with MetricsLog(tmp_path) as log:
            log.truncate("rl", resumed)
            for step in range(resumed + 1, 4):
                log.write("rl", step, {"reward": step / 2, "bad": math.nan})
    events = list(tiny.tensorboard_events(tmp_path / "tensorboard" / "rl"))
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert sorted(scalars) == [(1, "reward", 0.5), (2, "reward", 1.0), (3, "reward", 1.5), (3, "reward", 1.5)]
    assert [e.step for e in events if e.HasField("session_log")] == [3]
