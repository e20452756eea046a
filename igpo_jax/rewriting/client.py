"""One request to an OpenAI-compatible endpoint, with every way in which it can go wrong told apart."""

import asyncio
import dataclasses
import email.utils
import json
import time
from typing import Any

import httpx2 as httpx

#: Answers of a server that may be different a little later.
_RETRY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
#: Answers that will be the same for every row.
_FATAL = frozenset({401, 402, 403, 404, 405, 407})
#: Shorter keys are what local servers are given ("x", "EMPTY"): no secrets, and they occur in any text.
_SHORTEST_SECRET = 8
#: Longest body that is read.
_BODY_LIMIT = 8 << 20


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came back from one request.

    Attributes:
        kind: "reply", or why there is none: "retry" (try again), "refused" (this row never), "fatal" (no row ever).
        text: what the model wrote; "" where there is no reply.
        finish_reason: the endpoint's word for why the text ends, "length" where it was cut off.
        problem: a few words on what went wrong, "" for a reply.
        prompt_tokens: as counted by the endpoint, or estimated.
        reply_tokens: as counted by the endpoint, or estimated.
        estimated: whether the endpoint counted no tokens.
        wait: seconds after which the server wants to be asked again, 0 where it did not say.
    """

    kind: str
    text: str = ""
    finish_reason: str = ""
    problem: str = ""
    prompt_tokens: int = 0
    reply_tokens: int = 0
    estimated: bool = False
    wait: float = 0.0


def estimated_tokens(text: str) -> int:
    """A cautious guess at the tokens of a text: one for three characters."""
    return len(text) // 3 + 1


class Client:
    """Asks for chat completions; use it in an ``async with``."""

    def __init__(self, endpoint: str, model: str, key: str, temperature: float, max_tokens: int, timeout: float):
        self._url = endpoint.rstrip("/") + "/chat/completions"
        self._fields = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        self._timeout = timeout
        self._key = key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(headers=headers, timeout=timeout, limits=httpx.Limits(max_connections=None))

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, prompt: str) -> Reply:
        """Sends one request; whatever goes wrong is told in the reply, never raised."""
        payload = {**self._fields, "messages": [{"role": "user", "content": prompt}]}
        try:
            # The library's own limit is on each read: a server that drips bytes would never reach it.
            async with asyncio.timeout(self._timeout):
                status, headers, body = await self._post(payload)
        except (TimeoutError, httpx.TimeoutException):
            return Reply("retry", problem=f"no reply within {self._timeout:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Reply("retry", problem=self._clean(f"{type(error).__name__}: {error}"))
        if status != 200:
            return self._failure(status, headers, body)
        return self._reply(prompt, body)

    async def _post(self, payload: dict[str, Any]) -> tuple[int, Any, bytes]:
        body = bytearray()
        async with self._http.stream("POST", self._url, json=payload) as response:
            async for part in response.aiter_bytes():
                body += part
                if len(body) > _BODY_LIMIT:
                    break
            return response.status_code, response.headers, bytes(body)

    def _failure(self, status: int, headers: Any, body: bytes) -> Reply:
        problem = self._clean(f"HTTP {status}: {' '.join(body[:300].decode(errors='replace').split())}")
        if status in _RETRY:
            return Reply("retry", problem=problem, wait=_retry_after(headers.get("retry-after", "")))
        return Reply("fatal" if status in _FATAL or 300 <= status < 400 else "refused", problem=problem)

    def _reply(self, prompt: str, body: bytes) -> Reply:
        try:
            found = json.loads(body)
            choice = found["choices"][0]
            text = choice["message"]["content"]
            if not isinstance(text, str):
                raise TypeError(f"the content is {type(text).__name__}")
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            # The request was paid for although its reply is of no use.
            spent = (estimated_tokens(prompt), estimated_tokens(body.decode(errors="replace")))
            problem = self._clean(f"the reply cannot be read ({type(error).__name__}: {error})")
            return Reply("retry", problem=problem, prompt_tokens=spent[0], reply_tokens=spent[1], estimated=True)
        text = self._clean(text)
        reason = str(choice.get("finish_reason") or "")
        match found.get("usage"):
            case {"prompt_tokens": int(asked), "completion_tokens": int(written)} if min(asked, written) >= 0:
                return Reply("reply", text, reason, "", asked, written)
        return Reply("reply", text, reason, "", estimated_tokens(prompt), estimated_tokens(text), True)

    def _clean(self, text: str) -> str:
        """The text without the API key, which some servers repeat in what they send, and without halves of letters."""
        text = text.encode(errors="replace").decode()
        return text.replace(self._key, "[API key]") if len(self._key) >= _SHORTEST_SECRET else text


def _retry_after(value: str) -> float:
    """Seconds to wait from a Retry-After header, in either of its two forms; 0 where there is none."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
