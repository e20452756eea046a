"""A Ctrl-C while a checkpoint is being written takes effect when it is written, and loses nothing."""

import os
import signal
import threading

import jax
import numpy as np
import pytest

from igpo_jax.training.checkpoints import Checkpoints, CheckpointSettings

STATE = {"w": np.arange(6, dtype=np.float32)}


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(every=1))
    yield checkpoints
    checkpoints.close()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def during(monkeypatch, saved, name, times=1):
    """Has Ctrl-C pressed at the start of a call into Orbax; returns a list that tells whether the call ended."""
    real, ended = getattr(saved._manager, name), []

    def call(*args, **options):
        for _ in range(times):
            interrupt()
        result = real(*args, **options)
        ended.append(True)
        return result

    monkeypatch.setattr(saved._manager, name, call)
    return ended


@pytest.mark.parametrize("name", ["save", "wait_until_finished"])
def test_the_save_under_way_is_finished_first(saved, monkeypatch, tmp_path, name):
    ended = during(monkeypatch, saved, name)
    with pytest.raises(KeyboardInterrupt):
        saved.save(1, STATE)
        saved.wait()
    assert ended == [True]
    monkeypatch.undo()
    saved.save(1, STATE)
    saved.wait()
    with Checkpoints(tmp_path, read_only=True) as again:
        step, state, _ = again.restore(jax.tree.map(jax.numpy.asarray, STATE))
    assert step == 1
    np.testing.assert_array_equal(state["w"], STATE["w"])


def test_a_second_ctrl_c_does_not_wait(saved, monkeypatch):
    saved.save(1, STATE)
    ended = during(monkeypatch, saved, "wait_until_finished", times=2)
    with pytest.raises(KeyboardInterrupt):
        saved.wait()
    assert not ended
    monkeypatch.undo()


def test_the_usual_handler_is_back_afterwards(saved):
    before = signal.getsignal(signal.SIGINT)
    saved.save(1, STATE)
    saved.wait()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_other_threads_save_without_touching_signals(saved):
    failures = []

    def work():
        try:
            saved.save(1, STATE)
            saved.wait()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures and saved.steps() == [1]
