"""Nobody waits for the dead: the processes of a run watch each other and leave within seconds when one is gone.

A process that is killed leaves the others in a collective that may never end. So each holds a connection to the main
process beside those of jax; the kernel closes it when its owner ends, however it ends, and keep-alive packets notice a
machine that fell silent. Whoever hears of a loss says so in one sentence and ends at once, without the farewells that
would wait for the lost one. jax's own heartbeats (``processes.HEARTBEAT_SECONDS``) stand behind this: where no
connection can be made, they end the process, with a longer message.
"""

import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

#: Seconds that a process waits for another's own words before it speaks for it.
GRACE = 3.0
_LOST, _BYE = b"L", b"B"
_TOKEN_BYTES = 16


def advertise(host: str = "") -> tuple[socket.socket, dict[str, Any]]:
    """Opens the main process's port; returns the listener and what the others need to find it, as JSON values.

    Args:
      host: a name under which the others are known to reach this machine; "" for none.
    """
    listener = socket.create_server(("", 0), backlog=1024)
    names = [host, socket.gethostname(), _outward()]
    address = {"hosts": [name for name in names if name], "port": listener.getsockname()[1]}
    return listener, address | {"token": secrets.token_hex(_TOKEN_BYTES)}


def _outward() -> str:
    """This machine's address on the way out, "" without a network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return probe.getsockname()[0]


class Watch:
    """One process's part of the watch; ``listener`` is the main process's, None on the others.

    Args:
      number: this process.
      count: all processes.
      listener: what ``advertise`` opened, on the main process alone.
      address: what ``advertise`` returned, on all.
      leave: ends this process; for tests.
    """

    def __init__(
        self,
        number: int,
        count: int,
        listener: socket.socket | None,
        address: dict[str, Any],
        leave: Callable[[int], Any] = os._exit,
    ):
        self._number, self._count, self._leave = number, count, leave
        self._token = bytes.fromhex(address["token"])
        self._speaking = threading.Lock()
        self._ended = False
        self._peers: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        if listener is not None:
            self._admit(listener, time.monotonic() + 2 * GRACE)
        elif (connection := _connect(address["hosts"], address["port"])) is not None:
            connection.sendall(self._token + number.to_bytes(4, "big"))
            self._add(connection, 0)
        self.watching = len(self._peers)
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def _admit(self, listener: socket.socket, until: float) -> None:
        """Takes in the others, as many as come in time with the right token."""
        with listener:
            while len(self._peers) < self._count - 1 and time.monotonic() < until:
                listener.settimeout(max(0.01, until - time.monotonic()))
                try:
                    connection, _ = listener.accept()
                    connection.settimeout(GRACE)
                    hello = connection.recv(_TOKEN_BYTES + 4, socket.MSG_WAITALL)
                except OSError:
                    continue
                if hello[:_TOKEN_BYTES] == self._token and len(hello) == _TOKEN_BYTES + 4:
                    self._add(connection, int.from_bytes(hello[_TOKEN_BYTES:], "big"))
                else:
                    connection.close()

    def _add(self, connection: socket.socket, peer: int) -> None:
        connection.settimeout(GRACE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._peers[connection] = peer
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _run(self) -> None:
        while self._peers:
            for key, _ in self._selector.select(timeout=1.0):
                self._hear(key.fileobj, key.data)  # type: ignore[arg-type]

    def _hear(self, connection: socket.socket, peer: int) -> None:
        try:
            message = connection.recv(4096)
        except OSError:
            message = b""
        if message.startswith(_BYE):
            self._selector.unregister(connection)
            del self._peers[connection]
        elif message.startswith(_LOST):
            time.sleep(GRACE / 3)  # what went wrong there may be about to go wrong here, which says more
            self._lost(message[1:].decode(errors="replace"))
        elif not self._ended:
            self._lost(f"process {peer} of {self._count} was lost")

    def _lost(self, what: str) -> None:
        if self._ended:
            return
        self._tell(_LOST + what.encode())
        self.end(f"error: {what}; process {self._number} leaves too: start all of them again with the same command")

    def _tell(self, message: bytes) -> None:
        for connection in list(self._peers):
            try:
                connection.sendall(message)
            except OSError:
                continue  # it is gone itself

    def end(self, sentence: str, code: int = 1) -> None:
        """Says ``sentence``, if nobody in this process has spoken yet, and ends the process at once."""
        if not self._speaking.acquire(blocking=False):
            time.sleep(2 * GRACE)  # the thread that speaks ends the process
            return
        self._ended = True
        print(sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()
        self._leave(code)

    def fail(self, sentence: str, code: int) -> None:
        """Ends this process for a failure of its own, of which the others hear before they miss it."""
        self._ended = True
        self._tell(_LOST + f"process {self._number} of {self._count} failed ({sentence})".encode())
        if self._number == 0:
            # jax ends the others without a word as soon as its coordinator, which is in this process, is gone.
            time.sleep(GRACE)
        self.end(f"error: {sentence}" if sentence else "", code)

    def bye(self) -> None:
        """Leaves in good order: from here on nobody minds that this process ends."""
        self._ended = True
        self._tell(_BYE)


def _connect(hosts: Sequence[str], port: int) -> socket.socket | None:
    """A connection to the first of ``hosts`` that answers, None where none does."""
    for host in hosts:
        try:
            return socket.create_connection((host, port), timeout=GRACE)
        except OSError:
            continue
    return None
