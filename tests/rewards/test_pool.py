"""The worker pool: order, limits, killed workers, neighbours of hostile answers, and a clean end."""

import concurrent.futures
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from igpo_jax.errors import UserError
from igpo_jax.rewards import worker
from igpo_jax.rewards.pool import JudgePool, JudgeSettings

#: Each is an answer; the gold is 7. Written to take forever, to fill the memory, to run, or to upset a parser.
HOSTILE = [
    "9^9^9^9",
    "9**9**9**9",
    r"9^{9^{9^{9^{9}}}}",
    r"10^{10^{10^{10}}}!",
    "(((1000000!)!)!)!",
    "{" * 10_000 + "7" + "}" * 10_000,
    "(" * 900 + "7" + ")" * 900,
    r"\sqrt{" * 300 + "7" + "}" * 300,
    r"\frac{1}{" * 300 + "7" + "}" * 300,
    "-" * 1900 + "7",
    "x" * 1900,
    "^".join("9" * 900),
    r"\binom{10^{9}}{10^{8}}",
    r"\sin(10^{10^{10^{10}}})",
    r"\sum_{n=1}^{1000000000000} n^{n}",
    r"\prod_{k=1}^{9999} \sum_{n=1}^{9999} \int_0^n x^{x^x} dx",
    "__import__('os').system('touch judged_by_accident')",
    r"\input{/etc/passwd} \write18{ls}",
    "9" * 100_000,
    "7" + " " * 100_000 + "8",
    "\\text{" * 300,
    "\ud800\x00\u202e7",
]
NEIGHBOURS = [(r"\frac{1}{2}", r"\boxed{0.5}"), ("x^2-1", r"\boxed{(x-1)(x+1)}"), (r"\frac{1}{3}", r"\boxed{0.33}")]


@pytest.fixture(scope="module")
def pool():
    with JudgePool(JudgeSettings(workers=2, time_limit=1.0)) as pool:
        pool.judge(NEIGHBOURS * 2)
        yield pool


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def workers_of(pool: JudgePool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_answer_is_refused_and_its_neighbours_are_judged(pool, answer):
    boxed = "\\boxed{" + answer + "}"
    verdicts = pool.judge([NEIGHBOURS[0], ("7", boxed), *NEIGHBOURS[1:]])
    assert [verdict.correct for verdict in verdicts] == [True, False, True, False]
    assert not pathlib.Path("judged_by_accident").exists()


def test_hostile_answers_take_no_more_cpu_time_than_the_limit_allows(pool):
    start = time.monotonic()
    verdicts = pool.judge([("8", "\\boxed{" + answer + "}") for answer in HOSTILE])
    # two can reach the limit (they ask sympy); each may also cost a new worker
    assert time.monotonic() - start < 60
    assert sum(verdict.timed_out for verdict in verdicts) <= 2


def test_verdicts_keep_the_order_of_the_items(pool):
    items = [(str(n), f"\\boxed{{{n + (n % 3 == 0)} \\text{{ apples}}}}") for n in range(300)]
    assert [verdict.correct for verdict in pool.judge(items)] == [n % 3 != 0 for n in range(300)]


def test_repeated_items_and_empty_batches(pool):
    assert pool.judge([]) == []
    verdicts = pool.judge([("1/2", "\\boxed{0.5}")] * 50)
    assert [verdict.correct for verdict in verdicts] == [True] * 50


def test_workers_killed_at_any_time_cost_no_verdict():
    with JudgePool(JudgeSettings(workers=2)) as pool:
        stop, killed = threading.Event(), []

        def kill() -> None:
            while not stop.is_set():
                for pid in workers_of(pool):
                    killed.append(pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                stop.wait(0.7)

        killer = threading.Thread(target=kill)
        killer.start()
        reasons = []
        while len(killed) < 8:
            start = len(reasons)  # other answers each time: none is remembered
            batch = [(f"{n}+x", f"\\boxed{{x+{n}}}") for n in range(start, start + 100)]
            reasons.extend(verdict.reason for verdict in pool.judge(batch))
        stop.set()
        killer.join()
        assert set(reasons) == {"equal in value"}
        assert pool.timed_out == 0
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in killed)


def test_an_interrupted_call_leaves_a_pool_that_works(monkeypatch):
    def interrupt(self: JudgePool) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with JudgePool(JudgeSettings(workers=2)) as pool:
        monkeypatch.setattr(JudgePool, "_ready", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.judge(NEIGHBOURS)
        assert [verdict.correct for verdict in pool.judge(NEIGHBOURS)] == [True, True, False]


def test_several_threads_may_judge(pool):
    items = [[(f"{n}", f"\\boxed{{{n} + {k} - {k}}}") for n in range(60)] for k in range(3)]
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        for verdicts in threads.map(pool.judge, items):
            assert all(verdict.correct for verdict in verdicts)


def test_a_comparison_at_its_time_limit_is_stopped_and_counted():
    slow = ("8", r"\boxed{\int_0^1\int_0^1\int_0^1 \sin(xyz)e^{x^2y} dx dy dz}")
    with JudgePool(JudgeSettings(workers=1, time_limit=0.5)) as pool:
        verdicts = pool.judge([slow, NEIGHBOURS[0], slow])
        assert [verdict.correct for verdict in verdicts] == [False, True, False]
        assert [verdict.timed_out for verdict in verdicts] == [True, False, True]
        assert verdicts[0].reason == "stopped at the time limit"
        assert pool.timed_out == 2


def test_running_out_of_memory_is_reported(monkeypatch):
    def greedy(gold: str, answer: str) -> None:
        raise MemoryError

    monkeypatch.setattr("igpo_jax.rewards.worker.compare", greedy)
    assert worker._compare("1/2", "0.5", time_limit=60.0) == (False, "stopped at the memory limit", "memory")


def test_a_stopped_worker_is_replaced(monkeypatch):
    with JudgePool(JudgeSettings(workers=1)) as pool:
        pool.judge(NEIGHBOURS)
        monkeypatch.setattr("igpo_jax.rewards.pool.PATIENCE", -5.0)  # five seconds, with the limit
        os.kill(workers_of(pool)[0], signal.SIGSTOP)
        verdicts = pool.judge([("2/4", "\\boxed{0.5}"), ("3/4", "\\boxed{0.75}")])
        assert [verdict.timed_out for verdict in verdicts] == [True, False]
        assert verdicts[1].correct


def test_close_ends_every_worker_and_may_be_repeated():
    pool = JudgePool(JudgeSettings(workers=2))
    pids = workers_of(pool)
    pool.judge(NEIGHBOURS)
    pool.close()
    pool.close()
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)
    with pytest.raises(UserError, match="closed"):
        pool.judge(NEIGHBOURS)


def test_an_interrupt_ends_the_process_without_hanging_or_leaving_workers():
    code = (
        "from igpo_jax.rewards.pool import *\n"
        "pool = JudgePool(JudgeSettings(workers=1, time_limit=60))\n"
        "print(pool._workers[0].process.pid, flush=True)\n"
        r"pool.judge([('8', r'\boxed{\int_0^1\int_0^1\int_0^1 \sin(xyz)e^{x^2y} dx dy dz}')])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = int(process.stdout.readline())
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    assert not alive(first)


def test_a_worker_ends_when_its_parent_is_killed():
    code = (
        "from igpo_jax.rewards.pool import *\n"
        "import os, signal\n"
        "pool = JudgePool(JudgeSettings(workers=1))\n"
        "print(pool._workers[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(result.stdout)
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pid)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": -1}, "workers=-1"),
        ({"time_limit": 0.0}, "time_limit=0.0"),
        ({"memory_mb": 10}, "memory_mb=10"),
        ({"kind": "maths"}, "did you mean 'math'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        JudgeSettings(**settings)
