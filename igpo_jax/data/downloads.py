"""Downloads: each file once, whole or not at all, held against its checksum.

A checksum is the one that the source publishes (in this package, or in the header that Hugging Face sends with large
files). Where a source publishes none, the one of the first download is recorded beside the files and every later
download has to agree with it.
"""

import dataclasses
import email.message
import hashlib
import http.client
import json
import os
import pathlib
import re
import sys
import urllib.parse
import urllib.request
from typing import Any

from igpo_jax.data.files import file_sha256
from igpo_jax.errors import UserError

#: Seconds without a byte after which a download is given up.
PATIENCE = 30
_CHUNK = 2**20
_RECORD = "checksums.json"
#: Hugging Face names the sha256 of a large file here, in the answer that redirects to it.
_PUBLISHED = "X-Linked-Etag"


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file on the network."""

    url: str
    #: 64 hexadecimal digits where the source publishes them; empty otherwise.
    sha256: str = ""

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return pathlib.PurePosixPath(urllib.parse.urlparse(self.url).path).name


class Downloads:
    """A folder of downloaded files, with the checksums recorded at their first download.

    Args:
        folder: made at the first download.
        hint: what to do instead, for the error of a download that fails, e.g. ``set data.path to its folder``.
    """

    def __init__(self, folder: pathlib.Path, hint: str):
        self.folder, self.hint = folder, hint

    def sha256(self, remote: Remote) -> str:
        """Returns the file's checksum: published, recorded, or of the download that this starts."""
        return remote.sha256 or self._recorded().get(remote.url) or file_sha256(self.fetch(remote))

    def fetch(self, remote: Remote) -> pathlib.Path:
        """Returns the local copy, downloading it where there is none.

        Raises:
            UserError: the file cannot be had, or arrives with another checksum than it should.
        """
        path = self.path_of(remote)
        if path.is_file():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        # Some of the files take minutes; standard error, because building keeps TFDS from writing to standard output.
        print(f"downloading {remote.url}", file=sys.stderr, flush=True)
        try:
            found, published = self._transferred(remote, partial)
            self._check(remote, found, remote.sha256 or self._recorded().get(remote.url) or published)
            self._write_record(remote.url, found)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def path_of(self, remote: Remote) -> pathlib.Path:
        """Where the file lies once it is downloaded: equal names of different places stay apart."""
        return self.folder / f"{hashlib.sha256(remote.url.encode()).hexdigest()[:12]}-{remote.name}"

    def _check(self, remote: Remote, found: str, expected: str) -> None:
        if expected and found != expected:
            raise UserError(
                f"{remote.url} arrived with sha256 {found}, expected {expected}; try again, or fetch the file yourself"
                f" and {self.hint}"
            )

    def _recorded(self) -> dict[str, str]:
        path = self.folder / _RECORD
        if not path.is_file():
            return {}
        try:
            return {url: entry["sha256"] for url, entry in json.loads(path.read_text()).items()}
        except (ValueError, AttributeError, KeyError, TypeError):
            raise UserError(f"{path} is damaged; remove it to record the checksums of downloads anew") from None

    def _write_record(self, url: str, sha256: str) -> None:
        path = self.folder / _RECORD
        known = self._recorded()
        known.setdefault(url, sha256)
        partial = path.with_name(f"{_RECORD}.partial")
        partial.write_text(json.dumps({place: {"sha256": value} for place, value in known.items()}, indent=2) + "\n")
        partial.rename(path)

    def _transferred(self, remote: Remote, path: pathlib.Path) -> tuple[str, str]:
        try:
            return _transfer(remote.url, path)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UserError(
                f"{remote.url} could not be downloaded ({type(error).__name__}: {error}); fetch it yourself and"
                f" {self.hint}"
            ) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the checksum that one of them publishes."""

    def __init__(self) -> None:
        self.published = ""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: email.message.Message, newurl: str
    ) -> urllib.request.Request | None:
        self.published = self.published or _sha256_in(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _sha256_in(headers: Any) -> str:
    value = (headers.get(_PUBLISHED) or "").strip('"')
    return value if re.fullmatch(r"[0-9a-f]{64}", value) else ""


def _transfer(url: str, path: pathlib.Path) -> tuple[str, str]:
    """Downloads into ``path``; returns the sha256 of what arrived and the one that the server published, if any."""
    redirects, digest, size = _Redirects(), hashlib.sha256(), 0
    with urllib.request.build_opener(redirects).open(url, timeout=PATIENCE) as reply, path.open("wb") as file:
        published = redirects.published or _sha256_in(reply.headers)
        announced = reply.headers.get("Content-Length")
        while chunk := reply.read(_CHUNK):
            size += file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    if announced is not None and size != int(announced):
        raise ConnectionError(f"{size} of {announced} bytes arrived")
    return digest.hexdigest(), published
