"""The flags of the denoising loop, and the sampler that they add up to."""

import argparse
import dataclasses
import re

from igpo_jax.commands.checkpoint import Opened
from igpo_jax.diffusion.draws import DRAWS
from igpo_jax.diffusion.sampler import EOS_EXITS, STEP_BUDGETS, Sampler
from igpo_jax.diffusion.selection import SELECTIONS
from igpo_jax.errors import UserError

PRESETS = {"llada": Sampler.llada, "official": Sampler.official}

#: Fields whose flag is not simply their name with dashes.
_FLAGS = {"cfg_scale": "--cfg", "eot_token_id": "--eot-id"}


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the flags; what is not given comes from --preset, else from the run, else from the defaults."""
    group = parser.add_argument_group("sampler", "not given: of --preset, else of the run, else the usual ones")
    group.add_argument("--preset", choices=PRESETS, help="settings of LLaDA's or of IGPO's released sampler")
    group.add_argument("--length", type=int, metavar="N", help="tokens of the completion")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps in all")
    group.add_argument("--block-length", type=int, metavar="N", help="tokens of a block, finished left to right")
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token")
    group.add_argument("--draw", choices=DRAWS, help="how tokens are drawn at a temperature above 0")
    group.add_argument("--cfg", dest="cfg_scale", type=float, metavar="W", help="guidance, 0 for none")
    group.add_argument("--selection", choices=SELECTIONS, help="which predictions a step reveals")
    group.add_argument("--eos-exit", choices=EOS_EXITS, help="what a block full of end tokens ends")
    group.add_argument("--step-budget", choices=STEP_BUDGETS, help="steps of blocks with hints")
    switch = argparse.BooleanOptionalAction
    group.add_argument("--suppress-eos-logits", action=switch, help="never write the end token")
    group.add_argument("--suppress-eos-confidence", action=switch, help="reveal end tokens last")
    group.add_argument("--eot-id", dest="eot_token_id", type=int, metavar="ID", help="end-of-turn token for the latter")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")


def read(chosen: argparse.Namespace, opened: Opened, length: int | None = None) -> Sampler:
    """The sampler that the flags ask for.

    Args:
      chosen: the parsed flags.
      opened: the model; a training run's sampler is the default, at its evaluation's temperature.
      length: canvas length that the input already fixes.

    Raises:
      UserError: values that do not go together, in terms of the flags.
    """
    names = [field.name for field in dataclasses.fields(Sampler)]
    given = {name: getattr(chosen, name) for name in names if getattr(chosen, name, None) is not None}
    if length is not None:
        if given.get("length", length) != length:
            raise UserError(f"--length is {given['length']}, but the hints are for a canvas of {length}; leave it out")
        given["length"] = length
    if "eot_token_id" not in given and given.get("suppress_eos_confidence") and opened.tokenizer is not None:
        given["eot_token_id"] = opened.tokenizer.fast.get_vocab().get("<|eot_id|>", -1)
    try:
        if chosen.preset:
            return PRESETS[chosen.preset](**given)
        return dataclasses.replace(_usual(opened), **given)
    except UserError as error:
        raise UserError(re.sub(r"sampler\.(\w+)", lambda name: flag_of(name[1]), str(error))) from error


def _usual(opened: Opened) -> Sampler:
    return opened.run.sampler if opened.run else Sampler()


def flag_of(field: str) -> str:
    """The flag of a sampler's field."""
    return _FLAGS.get(field, f"--{field.replace('_', '-')}")
