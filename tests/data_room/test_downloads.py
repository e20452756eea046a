"""Downloads from a real server on this machine: whole or not at all, held against a checksum."""

import hashlib
import http.server
import json
import threading

import pytest

from igpo_jax.data import DataSettings, open_split
from igpo_jax.data.builders import metamath
from igpo_jax.data.downloads import Downloads, Remote
from igpo_jax.errors import UserError

CONTENT = {"/rows.json": b"first", "/large.json": b"x" * 3_000_000}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; /hub/NAME redirects as the hub does, /cut/NAME ends early, anything else is missing."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        kind, _, name = self.path[1:].rpartition("/")
        data = self.server.content.get(f"/{name}")
        if data is None or kind not in ("", "hub", "cut", "lied"):
            self.send_error(404)
        elif kind in ("hub", "lied"):
            self.send_response(302)
            self.send_header("Location", f"/{name}")
            self.send_header("X-Linked-Etag", f'"{sha(data if kind == "hub" else b"other")}"')
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if kind == "cut" else data)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.content, running.asked = dict(CONTENT), []
    running.url = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def downloads(tmp_path):
    return Downloads(tmp_path / "downloads", "set data.path to its folder")


def files_of(downloads):
    return sorted(path.name for path in downloads.folder.iterdir())


def test_a_file_is_fetched_once(server, downloads, capsys):
    remote = Remote(f"{server.url}/large.json", sha(CONTENT["/large.json"]))
    path = downloads.fetch(remote)
    assert path.read_bytes() == CONTENT["/large.json"] and path.name.endswith("-large.json")
    assert downloads.fetch(remote) == path and server.asked == ["/large.json"]
    assert downloads.sha256(remote) == remote.sha256
    assert capsys.readouterr().err == f"downloading {remote.url}\n"


def test_the_first_checksum_is_recorded_and_later_ones_have_to_agree(server, downloads):
    remote = Remote(f"{server.url}/rows.json")
    assert downloads.sha256(remote) == sha(b"first")
    assert json.loads((downloads.folder / "checksums.json").read_text())[remote.url] == {"sha256": sha(b"first")}
    downloads.path_of(remote).unlink()
    assert downloads.sha256(remote) == sha(b"first") and len(server.asked) == 1, "the record says it"
    server.content["/rows.json"] = b"second"
    with pytest.raises(UserError, match=f"rows.json arrived with sha256 {sha(b'second')}, expected {sha(b'first')}"):
        downloads.fetch(remote)
    assert files_of(downloads) == ["checksums.json"]


def test_what_the_hub_publishes_is_held_against_what_arrives(server, downloads):
    assert downloads.fetch(Remote(f"{server.url}/hub/rows.json")).read_bytes() == b"first"
    with pytest.raises(UserError, match=f"expected {sha(b'other')}"):
        downloads.fetch(Remote(f"{server.url}/lied/rows.json"))


def test_a_wrong_published_checksum(server, downloads):
    with pytest.raises(UserError, match=f"expected {'0' * 64}; try again, or fetch the file yourself and set"):
        downloads.fetch(Remote(f"{server.url}/rows.json", "0" * 64))
    assert files_of(downloads) == []


@pytest.mark.parametrize("path", ["/cut/rows.json", "/none.json"])
def test_what_does_not_arrive_whole_leaves_nothing(server, downloads, path):
    with pytest.raises(UserError, match=r"could not be downloaded \(.*fetch it yourself and set data.path"):
        downloads.fetch(Remote(server.url + path))
    assert files_of(downloads) == []


def test_nobody_answers(downloads, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/x.json could not be downloaded \(URLError"):
        downloads.fetch(Remote("http://127.0.0.1:9/x.json"))  # nothing listens on port 9


def test_a_damaged_record(server, downloads):
    downloads.folder.mkdir()
    (downloads.folder / "checksums.json").write_text("[")
    with pytest.raises(UserError, match=r"checksums.json is damaged; remove it"):
        downloads.sha256(Remote(f"{server.url}/rows.json"))


def test_a_data_set_from_its_public_home(tmp_path, server, monkeypatch):
    rows = [
        {
            "type": "GSM_AnsAug",
            "query": f"What is {n} + 1?",
            "response": f"It is {n + 1}.\n#### {n + 1}\nThe answer is: {n + 1}",
        }
        for n in range(20)
    ]
    server.content["/MetaMathQA-395K.json"] = json.dumps(rows).encode()
    monkeypatch.setattr(metamath, "REMOTE", Remote(f"{server.url}/hub/MetaMathQA-395K.json"))
    settings = DataSettings(name="metamath", test_name="chain", sft_fraction=0.25)
    sizes = [len(open_split(settings, split, tmp_path)) for split in ("sft", "rl")]
    assert sum(sizes) == 20 and server.asked == ["/hub/MetaMathQA-395K.json", "/MetaMathQA-395K.json"]
    report = open_split(settings, "rl", tmp_path).report
    assert report["sha256"] == {"train": sha(server.content["/MetaMathQA-395K.json"])}
