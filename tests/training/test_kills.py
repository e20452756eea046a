"""kill -9 at any moment and a restart: the same bits as a run that nobody touched. Real processes, twenty kills."""

import concurrent.futures
import random
import signal
import time

import pytest

from tests.training.kill_cases import Life, assert_same_run

#: What a life waits for before its last moments come, in the order in which three runs pass them.
CHAINS = (
    (
        ("start", "", 0.0),
        ("row", "sft", 2),
        ("saving", "sft", 3),
        ("row", "sft", 7),
        ("row", "sft", 11),
        ("row", "sft", 12),
        ("judging", "igpo", 1),
    ),
    (
        ("start", "", 0.0),
        ("judging", "igpo", 1),
        ("updating", "igpo", 2),
        ("saving", "igpo", 3),
        ("judging", "igpo", 6),
        ("updating", "igpo", 8),
        ("judging", "igpo", 11),
    ),
    (
        ("updating", "igpo", 1),
        ("judging", "igpo_eval", 4),
        ("judging", "igpo", 5),
        ("saving", "igpo", 6),
        ("updating", "igpo", 9),
        ("row", "igpo", 10),
    ),
)
assert sum(map(len, CHAINS)) == 20


def run_to_the_end(workdir, cache):
    life = Life(workdir, cache)
    assert life.end() == 0, life.said()


def killed_again_and_again(workdir, cache, moments, chance):
    """One run in as many lives as there are moments, and a last one to the end; how many were killed."""
    killed = 0
    for kind, stage, step in moments:
        life = Life(workdir, cache)
        if kind == "start":
            time.sleep(chance.uniform(1.0, 8.0))
        else:
            life.wait_for(kind, stage, step)
            # A step takes about a tenth of a second.
            time.sleep(chance.uniform(0.0, 0.01 if kind == "saving" else 0.2))
        killed += life.end(signal.SIGKILL) == -signal.SIGKILL
    run_to_the_end(workdir, cache)
    return killed


@pytest.mark.slow
def test_twenty_kills_leave_the_bits_of_a_whole_run(tmp_path):
    whole, cache, seed = tmp_path / "whole", tmp_path / "compiled", random.SystemRandom().randrange(10**6)
    run_to_the_end(whole, cache)
    with concurrent.futures.ThreadPoolExecutor(len(CHAINS)) as threads:
        lives = [
            threads.submit(killed_again_and_again, tmp_path / f"run{n}", cache, moments, random.Random(seed + n))
            for n, moments in enumerate(CHAINS)
        ]
        killed = sum(life.result() for life in lives)
    assert killed == 20, f"seed {seed}"
    for n in range(len(CHAINS)):
        assert_same_run(tmp_path / f"run{n}", whole)
