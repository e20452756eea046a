"""A request to end: heard once, taken at safe points, with exit codes of its own."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from igpo_jax.training.stopping import EXIT_CODES, Stop, Stopped


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGTERM, 75, "by SIGTERM"), (signal.SIGINT, 130, "by Ctrl-C")]
)
def test_a_signal_is_taken_at_the_next_safe_point(number, code, words, capfd):
    stop, before = Stop(), signal.getsignal(number)
    with stop.listening():
        stop.point()
        os.kill(os.getpid(), number)
        with pytest.raises(Stopped, match=words) as caught:
            stop.point()
        assert signal.getsignal(number) is signal.SIG_DFL
    assert caught.value.code == code == EXIT_CODES[number]
    assert signal.getsignal(number) is before
    assert f"{number.name}: saving at the next safe point" in capfd.readouterr().err


def test_a_preemption_notice_is_a_request():
    with pytest.raises(Stopped) as caught:
        Stop().point(preempted=True)
    assert caught.value.code == 75


def test_other_threads_leave_signals_alone():
    seen = []

    def work():
        with Stop().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(second):
    program = "import time; from igpo_jax.training.stopping import Stop\nwith Stop().listening():\n"
    program += "    print('on', flush=True)\n    while True: time.sleep(0.01)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline().startswith("SIGTERM: saving")
    start = time.monotonic()
    process.send_signal(second)
    process.communicate(timeout=60)
    assert process.returncode == -second and time.monotonic() - start < 30
