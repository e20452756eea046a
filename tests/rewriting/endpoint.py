"""A local endpoint in OpenAI's form that shortens worked solutions by a rule, and misbehaves when asked to.

Run it by itself to try ``python -m igpo_jax.rewrite``:
  python tests/rewriting/endpoint.py --port 8000
"""

import argparse
import collections
import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: A mark in a question that makes the endpoint misbehave in that row, e.g. "[500x2]": twice, then well.
_MARK = re.compile(r"\[(\w+?)(?:x(\d+))?\]")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_CALCULATION = re.compile(r"[\d$(][\d\s$./*+x()%-]*=\s*\$?-?\d+(?:\.\d+)?")


def shortened(prompt: str) -> str:
    """The calculations of the long solution, one a line, and its last number in a box."""
    solution = prompt.rpartition("Long solution:")[2].replace(",", "").strip()
    numbers = _NUMBER.findall(solution)
    steps = [" ".join(step.split()) for step in _CALCULATION.findall(solution)] or solution.splitlines()[-1:]
    return reply_text("\n".join(steps), numbers[-1] if numbers else "")


def reply_text(reasoning: str, answer: str) -> str:
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n\\boxed{{{answer}}}\n</answer>"


class Endpoint(ThreadingHTTPServer):
    """The server; ``asked`` counts the requests by question, ``largest`` is the most that were under way at once."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int = 0, delay: float = 0.0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.asked: collections.Counter[str] = collections.Counter()
        self.keys: set[str] = set()
        self.times: dict[str, list[float]] = collections.defaultdict(list)
        self.delay, self.under_way, self.largest = delay, 0, 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """A client that went away is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self):
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = payload["messages"][0]["content"]
        question = prompt.rpartition("Problem:")[2].partition("Long solution:")[0].strip()
        server = self.server
        with server.lock:
            server.asked[question] += 1
            server.times[question].append(time.monotonic())
            server.keys.add(self.headers.get("Authorization", ""))
            server.under_way += 1
            server.largest = max(server.largest, server.under_way)
            count = server.asked[question]
        try:
            time.sleep(server.delay)
            self.answer(prompt, question, count)
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, prompt: str, question: str, count: int) -> None:
        mark = _MARK.search(question)
        name = mark[1] if mark and count <= int(mark[2] or 10**9) else ""
        getattr(self, f"do_{name or 'well'}")(prompt)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def say(self, text: str, finish_reason: str = "stop", usage: bool = True) -> None:
        body = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}]}
        if usage:
            body["usage"] = {"prompt_tokens": 100, "completion_tokens": 20}
        self.send(200, json.dumps(body).encode())

    def do_well(self, prompt):
        self.say(shortened(prompt))

    def do_thinking(self, prompt):
        self.say("<think><reasoning>no</reasoning><answer>\\boxed{0}</answer></think>" + shortened(prompt))

    def do_uncounted(self, prompt):
        self.say(shortened(prompt), usage=False)

    def do_wrong(self, prompt):
        self.say(reply_text("1 + 1 = 3", "123456"))

    def do_untagged(self, prompt):
        self.say("The answer is \\boxed{5}.")

    def do_unboxed(self, prompt):
        self.say("<reasoning>so it is</reasoning><answer></answer>")

    def do_empty(self, prompt):
        self.say("<reasoning> </reasoning><answer>\\boxed{5}</answer>")

    def do_cut(self, prompt):
        self.say(shortened(prompt), finish_reason="length")

    def do_long(self, prompt):
        self.say(shortened(prompt).replace("<reasoning>", "<reasoning>" + "word " * 2000))

    def do_500(self, prompt):
        self.send(500, b"internal error")

    def do_429(self, prompt):
        self.send(429, b"slow down", Retry_After="0.3")

    def do_400(self, prompt):
        self.send(400, b'{"error": "the prompt is not allowed"}')

    def do_401(self, prompt):
        self.send(401, f"wrong key: {self.headers.get('Authorization')}".encode())

    def do_echo(self, prompt):
        self.say(shortened(prompt).replace("<reasoning>", f"<reasoning>{self.headers.get('Authorization')} "))

    def do_half(self, prompt):
        self.say(shortened(prompt).replace("<reasoning>", "<reasoning>\ud83d"))

    def do_truncated(self, prompt):
        self.send(200, b'{"choices": [{"message": {"content": "<reaso')

    def do_short(self, prompt):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices"')
        self.close_connection = True

    def do_null(self, prompt):
        self.send(200, b'{"choices": [{"message": {"content": null}}]}')

    def do_slow(self, prompt):
        time.sleep(3)
        self.say(shortened(prompt))

    def do_drip(self, prompt):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)

    def do_hangup(self, prompt):
        self.close_connection = True

    def log_message(self, *args):
        """Says nothing."""


@contextlib.contextmanager
def running(delay: float = 0.0) -> Iterator[Endpoint]:
    """The endpoint on a free port of this machine."""
    with Endpoint(delay=delay) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    with Endpoint(parser.parse_args().port) as server:
        print(f"listening on {server.address}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
