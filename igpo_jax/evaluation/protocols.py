"""Named evaluation protocols: template, lengths, steps, sampler and samples of every suite, as published."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from igpo_jax.commands.checkpoint import RunHabits
from igpo_jax.commands.sampler_flags import flag_of
from igpo_jax.data.templates import Template, get_template
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.errors import UserError, check_choice

PROTOCOLS = ("paper", "d1", "llada", "run")

#: Suites of which the paper reports avg@16 at temperature 0.1.
AMC = ("amc23", "amc22_23")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How the questions of one suite are asked."""

    template: Template
    sampler: Sampler
    samples: int  # completions per question

    @property
    def metric(self) -> str:
        """Name of the score: pass@1 for one sample a question, avg@k for k."""
        return "pass@1" if self.samples == 1 else f"avg@{self.samples}"


@dataclasses.dataclass(frozen=True)
class Changes:
    """What the command line sets otherwise than the protocol; None keeps the protocol's value."""

    length: int | None = None  # tokens of the completion; the steps go along unless they are given too
    steps: int | None = None
    block_length: int | None = None
    temperature: float | None = None
    samples: int | None = None
    template: str | None = None

    def given(self) -> dict[str, Any]:
        """The values that are set."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def protocol_of(name: str, suite: str, changes: Changes = Changes(), run: RunHabits | None = None) -> Protocol:
    """The protocol ``name`` for a suite, with changes.

    Args:
      name: one of PROTOCOLS.
      suite: the suite's name; a name that the protocol says nothing about is asked as GSM8K is.
      changes: what is set otherwise.
      run: habits of the training run, for the protocol "run".

    Raises:
      UserError: the protocol is unknown, or a change does not fit, in terms of the flags.
    """
    check_choice("--protocol", name, PROTOCOLS)
    if name == "run" and run is None:
        raise UserError(
            "--protocol run asks as the training run itself did, but --checkpoint is no run directory; "
            "use one of paper, d1 and llada"
        )
    template, sampler, samples = _of_run(run) if run and name == "run" else _PUBLISHED[name](suite)
    if changes.samples is not None:
        samples = changes.samples
    sampler = _changed(sampler, changes)
    if samples < 1:
        raise UserError(f"--samples is {samples}, expected at least 1 completion per question")
    if samples > 1 and sampler.temperature == 0:
        raise UserError(
            f"--samples is {samples} at temperature 0, where all samples are equal; "
            "use --samples 1, or raise --temperature"
        )
    return Protocol(get_template(changes.template or template), sampler, samples)


def _paper(suite: str) -> tuple[str, Sampler, int]:
    """IGPO (arXiv 2509.10396, appendix C): 512 tokens; AMC 16 times at 0.1. Steps and blocks are those of its training.

    The paper does not state steps and block length of its evaluation; two tokens a step in blocks of 32 is how it
    samples in training.
    """
    temperature, samples = (0.1, 16) if suite in AMC else (0.0, 1)
    return "paper", Sampler(length=512, steps=256, block_length=32, temperature=temperature), samples


def _d1(suite: str) -> tuple[str, Sampler, int]:
    """dllm-reasoning/d1 ``eval/eval.py``: the middle of its three lengths, two tokens a step, greedy, no early exit."""
    return "d1", Sampler.llada(length=256, steps=128, block_length=32), 1


def _llada(suite: str) -> tuple[str, Sampler, int]:
    """ML-GSAI/LLaDA ``EVAL.md`` for Instruct: a step for every token; GSM8K in blocks of 8, MATH 512 tokens in 64."""
    if suite in ("math500", *AMC):
        return "boxed", Sampler.llada(length=512, steps=512, block_length=64), 1
    return "boxed", Sampler.llada(length=256, steps=256, block_length=8), 1


_PUBLISHED: dict[str, Callable[[str], tuple[str, Sampler, int]]] = {"paper": _paper, "d1": _d1, "llada": _llada}


def _of_run(run: RunHabits) -> tuple[str, Sampler, int]:
    return run.template.name, run.sampler, run.samples


def _changed(sampler: Sampler, changes: Changes) -> Sampler:
    fields = {field.name for field in dataclasses.fields(Sampler)}
    given = {name: value for name, value in changes.given().items() if name in fields}
    if "length" in given:
        # Tokens a step and the block are the protocol's, so that a shorter canvas is not sampled otherwise.
        given.setdefault("block_length", min(sampler.block_length, max(1, given["length"])))
        given.setdefault("steps", max(1, given["length"] * sampler.steps // sampler.length))
    try:
        return dataclasses.replace(sampler, **given)
    except UserError as error:
        raise UserError(re.sub(r"sampler\.(\w+)", lambda name: flag_of(name[1]), str(error))) from error
