"""Processes that watch each other: who hears of a loss leaves with one sentence, who ends in order is not missed."""

import socket
import threading
import time

import pytest

from igpo_jax.parallel import watchdog


class Party:
    """Three watches in this process, connected over the loopback; ``codes`` are the exit codes of those that left."""

    def __init__(self, count=3):
        listener, address = watchdog.advertise("localhost")
        self.codes = {}
        self.left = threading.Condition()
        made = {}

        def join(number):
            made[number] = watchdog.Watch(
                number, count, listener if number == 0 else None, address, lambda code: self._leave(number, code)
            )

        threads = [threading.Thread(target=join, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.watches = [made[number] for number in range(count)]

    def _leave(self, number, code):
        with self.left:
            self.codes[number] = code
            self.left.notify_all()
        for connection in list(self.watches[number]._peers):
            connection.close()
        self.watches[number]._peers.clear()

    def kill(self, number):
        """Ends a watch as the kernel ends the connections of a killed process."""
        watch = self.watches[number]
        for connection in list(watch._peers):
            watch._ended = True
            connection.shutdown(socket.SHUT_RDWR)

    def gone(self, count, patience=20):
        with self.left:
            return self.left.wait_for(lambda: len(self.codes) >= count, timeout=patience)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watchdog, "GRACE", 0.5)


def test_all_are_connected_to_the_main_process():
    party = Party()
    assert [watch.watching for watch in party.watches] == [2, 1, 1]
    for watch in reversed(party.watches):
        watch.bye()
    time.sleep(0.2)
    assert party.codes == {}, "nobody minds that they left in order"


def test_a_lost_process_is_named_by_every_other(capsys):
    party = Party()
    party.kill(2)
    assert party.gone(2)
    assert party.codes == {0: 1, 1: 1}
    said = capsys.readouterr().err.splitlines()
    assert sorted(said) == [
        f"error: process 2 of 3 was lost; process {number} leaves too: start all of them again with the same command"
        for number in (0, 1)
    ]


def test_the_loss_of_the_main_process_is_noticed(capsys):
    party = Party()
    party.kill(0)
    assert party.gone(2)
    assert party.codes == {1: 1, 2: 1}
    assert capsys.readouterr().err.count("process 0 of 3 was lost") == 2


def test_a_failure_is_told_to_the_others_in_its_own_words(capsys):
    party = Party()
    party.watches[1].fail("the disk is full", 2)
    assert party.gone(3)
    assert party.codes == {1: 2, 0: 1, 2: 1}
    said = capsys.readouterr().err
    assert "error: the disk is full\n" in said
    assert said.count("process 1 of 3 failed (the disk is full)") == 2


def test_strangers_are_not_let_in():
    listener, address = watchdog.advertise("localhost")
    codes = []
    stranger = socket.create_connection(("localhost", address["port"]))
    stranger.sendall(b"x" * 20)
    watch = watchdog.Watch(0, 2, listener, address, codes.append)
    assert watch.watching == 0 and codes == []
    stranger.close()


def test_without_a_way_to_the_main_process_there_is_no_watch():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    watch = watchdog.Watch(1, 2, None, {"hosts": ["localhost"], "port": port, "token": "00" * 16}, pytest.fail)
    assert watch.watching == 0
