"""How one completion came about: every token with the step that revealed it, and the canvas after every step."""

import dataclasses
import math
from typing import Any, cast

import numpy as np

from igpo_jax.commands.pieces import marker
from igpo_jax.data.token_texts import token_texts
from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.diffusion import denoise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.parallel.sharding import to_host


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One denoised canvas of C tokens; S denoising steps were run."""

    prompt: str
    text: str  # up to the first end token
    tokens: np.ndarray  # (C,) int32, the completion
    texts: list[str]  # C texts of single tokens, "" for special ones
    markers: list[str]  # C names of tokens without text
    hint: np.ndarray  # (C,) bool
    reveal_step: np.ndarray  # (C,) int32, step of the schedule; denoise.HINT or denoise.FILLED where none did
    shown_from: np.ndarray  # (C,) int, how many of the S steps were done when the token stood there, 0 for hints
    steps: np.ndarray  # (S,) int, the steps that ran
    canvas: np.ndarray  # (S, C) int32, after each step
    choice: np.ndarray  # (S, K) int32, each step's prediction for its whole block
    confidence: np.ndarray  # (S, K) float32, -inf where there was no mask
    revealed: np.ndarray  # (S, K) bool
    sampler: Sampler

    def confidence_of(self, position: int) -> float | None:
        """The confidence with which a token was revealed; None for one that no step revealed."""
        step = self.reveal_step[position]
        if step < 0:
            return None
        place = position % self.sampler.block_length
        return float(self.confidence[np.searchsorted(self.steps, step), place])

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; docs/generation.md explains them."""
        kinds = {denoise.HINT: "hint", denoise.FILLED: "filled"}
        return {
            "prompt": self.prompt,
            "text": self.text,
            "sampler": {name: value for name, value in vars(self.sampler).items() if name != "record"},
            "tokens": [
                {
                    "position": position,
                    "id": int(token),
                    "text": self.texts[position],
                    "source": kinds.get(int(self.reveal_step[position]), "step"),
                    "step": int(self.reveal_step[position]) if self.reveal_step[position] >= 0 else None,
                    "confidence": self.confidence_of(position),
                }
                for position, token in enumerate(self.tokens)
            ],
            "steps": [self._step(row) for row in range(len(self.steps))],
        }

    def _step(self, row: int) -> dict[str, Any]:
        block = int(self.steps[row]) // self.sampler.steps_per_block
        start = block * self.sampler.block_length
        return {
            "step": int(self.steps[row]),
            "block": block,
            "tokens": self.canvas[row].tolist(),
            "revealed": (start + np.flatnonzero(self.revealed[row])).tolist(),
            "choices": self.choice[row].tolist(),
            "confidences": [value if math.isfinite(value) else None for value in self.confidence[row].tolist()],
        }


def of(prompt: str, done: denoise.Denoised, sampler: Sampler, tokenizer: Tokenizer) -> Trajectory:
    """The trajectory of the first row of a recorded result."""
    trace = cast(denoise.Trace, done.trace)
    steps = np.flatnonzero(to_host(trace.ran))
    tokens, reveal_step = to_host(done.tokens)[0], to_host(done.reveal_step)[0]
    canvas = to_host(trace.tokens)[steps, 0]
    texts = token_texts(tokenizer, tokens, tokenizer.mask_id)
    # Filled tokens appear between two steps, or after the last one.
    masked = (canvas == tokenizer.mask_id).sum(axis=0)
    return Trajectory(
        prompt=prompt,
        text=tokenizer.decode(tokens, until_eos=True),
        tokens=tokens,
        texts=texts,
        markers=["" if text else marker(tokenizer, token) for text, token in zip(texts, tokens.tolist(), strict=True)],
        hint=reveal_step == denoise.HINT,
        reveal_step=reveal_step,
        shown_from=np.where(reveal_step == denoise.HINT, 0, masked + 1),
        steps=steps,
        canvas=canvas,
        choice=to_host(trace.choice)[steps, 0],
        confidence=to_host(trace.confidence)[steps, 0],
        revealed=to_host(trace.revealed)[steps, 0],
        sampler=sampler,
    )
