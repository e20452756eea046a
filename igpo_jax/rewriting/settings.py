"""The settings of a rewriting run; each field is a flag of ``python -m igpo_jax.rewrite``."""

import dataclasses
import urllib.parse
from typing import Any

from igpo_jax.errors import UserError


def _field(default: Any, about: str, changeable: bool = True) -> Any:
    return dataclasses.field(default=default, metadata={"help": about, "changeable": changeable})


@dataclasses.dataclass(frozen=True)
class RewriteSettings:
    """Whom to ask, how, how often, and what a rewritten trace must be like.

    Raises:
        UserError: a value outside its range.
    """

    endpoint: str = _field("http://127.0.0.1:8000/v1", "Address of an OpenAI-compatible endpoint, up to /v1.")
    model: str = _field("", "Model name that the endpoint knows.", changeable=False)
    api_key_env: str = _field("OPENAI_API_KEY", "Environment variable with the API key; unset sends none.")
    temperature: float = _field(0.7, "Sampling temperature of the endpoint.", changeable=False)
    max_tokens: int = _field(2048, "Longest reply, in tokens of the endpoint's model.", changeable=False)
    words_low: int = _field(100, "Smallest bound on the words of a trace; each row draws its own.", changeable=False)
    words_high: int = _field(1000, "Largest bound on the words of a trace.", changeable=False)
    slack: float = _field(1.2, "A trace is accepted up to this multiple of its bound.", changeable=False)
    seed: int = _field(0, "Of the bounds drawn.", changeable=False)
    asks: int = _field(1, "Replies asked for a row until one is accepted.")
    concurrency: int = _field(8, "Requests under way at a time.")
    timeout: float = _field(120.0, "Seconds after which a request is given up and made again.")
    retries: int = _field(5, "Times that a failed request is made again.")
    backoff: float = _field(1.0, "Seconds before the first retry, doubled for each one after it.")
    backoff_max: float = _field(60.0, "Longest wait before a retry, in seconds.")
    max_requests: int = _field(0, "Requests to make at most, earlier runs included; 0 = no limit.")
    max_total_tokens: int = _field(0, "Tokens to use at most, prompts and replies; 0 = no limit.")
    price_prompt: float = _field(0.0, "Price of a million prompt tokens, for the summary.")
    price_reply: float = _field(0.0, "Price of a million reply tokens, for the summary.")

    def __post_init__(self) -> None:
        _check_endpoint(self.endpoint)
        if not self.model:
            raise UserError("--model is missing; pass the name that the endpoint knows the model by")
        if not 1 <= self.words_low <= self.words_high:
            raise UserError(
                f"--words_low={self.words_low} and --words_high={self.words_high}, expected 1 <= low <= high"
            )
        for name, least in (("slack", 1.0), ("asks", 1), ("concurrency", 1), ("max_tokens", 1), ("retries", 0)):
            _at_least(name, getattr(self, name), least)
        for name in ("backoff", "backoff_max", "max_requests", "max_total_tokens", "price_prompt", "price_reply"):
            _at_least(name, getattr(self, name), 0)
        if not (self.timeout > 0 and self.temperature >= 0):
            raise UserError(
                f"--timeout={self.timeout} and --temperature={self.temperature}, expected seconds above 0 and a "
                "temperature of 0 or more"
            )

    def fixed(self) -> dict[str, Any]:
        """The fields that change what a reply is, so that a run is continued with the same ones only."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.metadata["changeable"]
        }


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:  # nan is no number either
        raise UserError(f"--{name} is {value}, expected at least {least}")


def _check_endpoint(endpoint: str) -> None:
    parts = urllib.parse.urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--endpoint is '{endpoint}', expected an address like https://HOST/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(
            "--endpoint holds a user, a password or a query, which would be stored with the run; "
            "put the key into the environment variable that --api_key_env names"
        )
