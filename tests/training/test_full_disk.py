"""A disk that is full costs the run what cannot be written, and nothing that is written already."""

import contextlib
import errno
import logging
import os
import resource

import jax
import jax.numpy as jnp
import pytest

from igpo_jax.errors import UserError
from igpo_jax.rewards.verdict import Verdict
from igpo_jax.training import checkpoints
from igpo_jax.training.checkpoints import Checkpoints, CheckpointSettings
from igpo_jax.training.files import in_words, is_full, named_when_full, spared_when_full, write_whole
from igpo_jax.training.health import HealthSettings, Monitor, read_findings
from igpo_jax.training.journal import Journal
from igpo_jax.training.metrics import FILE, MetricsLog, read_metrics
from tests.training import tiny

EVERY = CheckpointSettings(every=1, keep_last=5)
MIB = 2**20


def state(number, mebibytes=1):
    return {"w": jax.random.normal(jax.random.key(number), (mebibytes * MIB // 4,))}


@contextlib.contextmanager
def files_end_at(size):
    """The system refuses to let any file grow beyond ``size`` bytes, as it refuses on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def free_bytes(monkeypatch, size):
    real = checkpoints.shutil.disk_usage
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "disk_usage", lambda path: real(path)._replace(free=size))
        yield


def names(folder):
    return sorted(os.listdir(folder))


def newest(saved):
    step, found, _ = saved.restore(jax.eval_shape(lambda: state(0)))
    return step, bool(jnp.array_equal(found["w"], state(step)["w"]))


def test_a_scheduled_save_without_room_is_named_and_the_next_one_tried(tmp_path, monkeypatch, caplog):
    with Checkpoints(tmp_path, EVERY) as saved, caplog.at_level(logging.WARNING):
        assert saved.save(1, state(1))
        with free_bytes(monkeypatch, MIB // 4):
            assert not saved.save(2, state(2))
        assert "checkpoint of step 2 could not be written" in caplog.text
        assert "takes 1.0 MiB and 256.0 KiB are free, so 768.0 KiB are missing" in caplog.text
        assert "the run goes on and tries again" in caplog.text
        assert newest(saved) == (1, True)
        assert saved.save(3, state(3))
    assert names(tmp_path) == ["1", "3"]


def test_the_last_save_without_room_is_an_error(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, EVERY) as saved:
        saved.save(1, state(1))
        with free_bytes(monkeypatch, 0), pytest.raises(UserError, match=r"step 2 .* so 1.0 MiB are missing: make room"):
            saved.save(2, state(2), force=True)
        assert newest(saved) == (1, True)
        assert saved.save(2, state(2), force=True), "with room it is made"
    assert names(tmp_path) == ["1", "2"]


def test_a_write_that_breaks_off_in_the_background(tmp_path, caplog):
    """There was room when the save began; then the system refuses the writes of Orbax's threads."""
    with Checkpoints(tmp_path, EVERY) as saved, caplog.at_level(logging.WARNING):
        saved.save(1, state(1))
        saved.wait()
        with files_end_at(MIB // 2):
            assert saved.save(2, state(2))
            with pytest.raises(UserError, match=r"step 2 could not be written .*the checkpoints before it are intact"):
                saved.wait()
            assert names(tmp_path) == ["1"], "what was half written takes no more room"
            assert saved.save(3, state(3))
            assert saved.save(4, {"w": jnp.zeros(4)}), "the failure of step 3 is a warning"
            assert "checkpoint of step 3 could not be written" in caplog.text
            saved.wait()
        assert names(tmp_path) == ["1", "4"]
        assert saved.save(5, state(5))
        assert newest(saved) == (5, True)
    with Checkpoints(tmp_path, EVERY, read_only=True) as again:
        assert again.steps() == [1, 4, 5] and newest(again) == (5, True)


def test_a_failure_of_the_last_save_comes_out_at_the_end(tmp_path):
    saved = Checkpoints(tmp_path, EVERY)
    with files_end_at(MIB // 2):
        saved.save(1, state(1), force=True)
        with pytest.raises(UserError, match="step 1 could not be written"):
            saved.close()
    saved.close()


def test_rows_wait_for_room_and_no_line_is_cut(tmp_path, caplog):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write("rl", 1, {"a": 1})
        size = (tmp_path / FILE).stat().st_size
        with files_end_at(size + 20), caplog.at_level(logging.WARNING):
            log.write("rl", 2, {"a": 2})
            log.write("rl", 3, {"a": 3})
            assert not log.sync()
            assert (tmp_path / FILE).stat().st_size == size
            assert log.has("rl", 3)
        assert f"{tmp_path / FILE} cannot grow" in caplog.text
        assert log.sync()
        log.write("rl", 4, {"a": 4})
    assert [(row.step, row.values["a"]) for row in read_metrics(tmp_path)] == [(n, n) for n in (1, 2, 3, 4)]


def test_rows_that_never_found_room_are_an_error_at_the_end(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write("rl", 1, {"a": 1})
    with files_end_at((tmp_path / FILE).stat().st_size):
        log.write("rl", 2, {"a": 2})
        with pytest.raises(UserError, match=r"1 rows of .*metrics.jsonl could not be written"):
            log.close()
    assert [row.step for row in read_metrics(tmp_path)] == [1]


def test_a_journal_without_room_does_not_stop_the_run(tmp_path, caplog):
    class Yes:
        def judge(self, items):
            return [Verdict(True, text, "yes") for _, text in items]

    journal = Journal(Yes(), tmp_path)
    journal.begin("igpo", 1)
    with files_end_at(10), caplog.at_level(logging.WARNING):
        assert journal.judge([("1", "one")])[0].correct
        journal.begin("igpo", 2)
        assert journal.judge([("1", "one")])[0].correct
        journal.end()
        journal.begin("igpo", 1)
        assert journal.judge([("1", "one")])[0].correct
    assert "igpo_000001.p0.jsonl cannot grow" in caplog.text
    journal.judge([("2", "two")])
    journal.end()
    again = Journal(None, tmp_path)
    again.begin("igpo", 1)
    assert [verdict.answer for verdict in again.judge([("1", "one"), ("2", "two")])] == ["one", "two"]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "config.json"
    write_whole(path, "first")
    with files_end_at(3), pytest.raises(OSError) as failed:
        write_whole(path, "second")
    assert is_full(failed.value) and path.read_text() == "first"
    write_whole(path, "third")
    assert path.read_text() == "third" and names(path.parent) == ["config.json"]


def test_tensorboard_waits_for_room_and_nobody_for_it(tmp_path, caplog):
    """A thread that dies of a full disk leaves a queue behind that nobody empties, and the run would wait for it."""
    folder = tmp_path / "tensorboard" / "rl"
    with MetricsLog(tmp_path) as log:
        log.write("rl", 0, {"a": 0})
        with files_end_at(next(folder.iterdir()).stat().st_size + 20), caplog.at_level(logging.WARNING):
            for step in range(1, 30):
                log.write("rl", step, {"a": step})
        assert str(folder) in caplog.text
        log.write("rl", 30, {"a": 30})
    events = list(tiny.tensorboard_events(folder))
    assert [event.step for event in events if event.summary.value] == list(range(31))


def test_a_finding_and_a_score_without_room_do_not_stop_the_run(tmp_path, caplog):
    watch = Monitor(HealthSettings(), "igpo", tmp_path)
    with Checkpoints(tmp_path / "checkpoints", EVERY) as saved, caplog.at_level(logging.WARNING):
        saved.save(1, state(1))
        saved.wait()
        with files_end_at(0):
            assert watch.observe(1, {"ratio_gap": 1.0})
            saved.score(1, 0.5)
        assert saved.best_step() == 1
    assert "health.jsonl cannot grow" in caplog.text and "scores.json could not be written" in caplog.text
    watch.observe(2, {"ratio_gap": 0.0})
    watch.observe(3, {"ratio_gap": 1.0})
    assert [finding.step for finding in read_findings(tmp_path)] == [3]


def test_what_a_run_cannot_do_without_is_one_sentence(tmp_path):
    sentence = r"the disk of .* is full \(File too large; .* are free\); make room"
    with pytest.raises(UserError, match=sentence), named_when_full(tmp_path), files_end_at(3):
        write_whole(tmp_path / "summary.json", "long enough")
    with pytest.raises(PermissionError), named_when_full(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_only_a_full_disk_is_forgiven(caplog):
    with caplog.at_level(logging.WARNING), spared_when_full("the file"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert "the file could not be written (Disk quota exceeded)" in caplog.text
    with pytest.raises(PermissionError), spared_when_full("the file"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert is_full(ValueError("RESOURCE_EXHAUSTED: ... [OS error 28: No space left on device]"))
    assert not is_full(ValueError("something else"))


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3.25 * 2**30, "3.2 GiB"), (5 * 2**40, "5.0 TiB")],
)
def test_sizes_in_words(size, words):
    assert in_words(size) == words
