"""Settings of the denoising loop, and the presets that reproduce published samplers."""

import dataclasses
from typing import Any

from igpo_jax.diffusion.draws import DRAWS
from igpo_jax.diffusion.selection import SELECTIONS
from igpo_jax.errors import UserError, check_choice

#: "row": a row whose whole block came out as EOS is finished, the rest of it becomes EOS while other rows go on.
#: "batch": only once every row's block is all EOS (the official code). "none": every position is predicted.
EOS_EXITS = ("row", "batch", "none")

#: How many steps a block with hints gets, see schedule.block_steps.
STEP_BUDGETS = ("schedule", "open_masks")

#: "row": a row goes on to its next block as soon as its own steps are done, so a program runs as many steps as its
#: slowest row needs in all. "block": all rows work on the same block, and each block takes its slowest row's steps.
PACES = ("row", "block")


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How completions are denoised. Hashable and static: every field but temperature compiles its own program."""

    length: int = 256  #: canvas length C in tokens
    steps: int = 128  #: denoising steps over the whole canvas, the same number for every block
    block_length: int = 32  #: tokens of a block; blocks are completed from left to right
    temperature: float = 0.0  #: tokens are drawn from softmax(logits / temperature); 0 takes the most likely one
    draw: str = "inverse_cdf"  #: how: by two uniforms a position, or by the reference's "gumbel" noise; see DRAWS
    selection: str = "low_confidence"  #: which choices are revealed: the most probable, or "random" ones
    cfg_scale: float = 0.0  #: classifier-free guidance w: logits u + (w + 1)(c - u); 0 is off, else two passes a step
    eos_exit: str = "row"  #: what an all-EOS block ends, see EOS_EXITS
    step_budget: str = "schedule"  #: steps of blocks with hints; "open_masks" takes fewer, which changes results
    pace: str = "row"  #: what rows with hints wait for, see PACES; tokens are the same
    forbid_mask: bool = True  #: never draw the mask token; off, a drawn mask stays a mask, as in the reference
    suppress_eos_logits: bool = False  #: never draw EOS
    suppress_eos_confidence: bool = False  #: reveal EOS (and eot_token_id) last: their confidence is 0
    eot_token_id: int = -1  #: end-of-turn token for suppress_eos_confidence; -1 for none
    record: bool = False  #: return what every step saw and did

    def __post_init__(self) -> None:
        check_choice("sampler.draw", self.draw, DRAWS)
        check_choice("sampler.selection", self.selection, SELECTIONS)
        check_choice("sampler.eos_exit", self.eos_exit, EOS_EXITS)
        check_choice("sampler.step_budget", self.step_budget, STEP_BUDGETS)
        check_choice("sampler.pace", self.pace, PACES)
        for field in ("length", "steps", "block_length"):
            if getattr(self, field) < 1:
                raise UserError(f"sampler.{field} is {getattr(self, field)}, expected a positive number")
        for field in ("temperature", "cfg_scale"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise UserError(f"sampler.{field} is {getattr(self, field)}, expected 0 or more")
        self._check_blocks()

    def _check_blocks(self) -> None:
        if self.length % self.block_length:
            lower = self.length - self.length % self.block_length
            tries = " or ".join(str(length) for length in (lower, lower + self.block_length) if length)
            raise UserError(
                f"sampler.length is {self.length}, which blocks of sampler.block_length {self.block_length} do not "
                f"divide; use a length of {tries}, or another block length"
            )
        if self.steps < self.blocks:
            raise UserError(
                f"sampler.steps is {self.steps}, fewer than the {self.blocks} blocks of {self.block_length} tokens; "
                f"each block needs a step, so use at least {self.blocks} steps or a larger sampler.block_length"
            )
        if self.steps % self.blocks:
            lower = self.steps - self.steps % self.blocks
            raise UserError(
                f"sampler.steps is {self.steps}, which does not divide over {self.blocks} blocks; "
                f"use {lower} or {lower + self.blocks} steps"
            )

    @property
    def blocks(self) -> int:
        """Number of blocks of the canvas."""
        return self.length // self.block_length

    @property
    def steps_per_block(self) -> int:
        """Denoising steps that the schedule gives to each block."""
        return self.steps // self.blocks

    @property
    def rows_apart(self) -> bool:
        """Whether rows may be in different blocks: not where a step's record or exit is of all rows together."""
        return self.pace == "row" and self.eos_exit != "batch" and not self.record

    @classmethod
    def llada(cls, **changes: Any) -> "Sampler":
        """The sampler of ML-GSAI/LLaDA ``generate.py`` with its default settings, changed by field name."""
        preset: dict[str, Any] = {"length": 128, "steps": 128, "block_length": 128, "draw": "gumbel"}
        preset |= {"eos_exit": "none", "forbid_mask": False}
        return cls(**(preset | changes))

    @classmethod
    def official(cls, **changes: Any) -> "Sampler":
        """The sampler of facebookresearch/igpo ``utils/generate.py`` with its run's settings, changed by field name."""
        preset: dict[str, Any] = {"length": 256, "steps": 128, "block_length": 32, "temperature": 1.2}
        preset |= {"eos_exit": "batch", "forbid_mask": False, "draw": "gumbel"}
        return cls(**(preset | changes))
