"""A minimal LLaDA in PyTorch and the reference's denoising loop, as the opponent of ``rollout.py``.

The network is a plain LLaDA with torch's fused attention; the loop is that of ML-GSAI/LLaDA ``generate.py`` (low
confidence remasking, no guidance), which projects the whole row onto the vocabulary at every step and adds its
Gumbel noise in float64. ``check`` holds both against the golden trajectories, token for token.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from convert import hf

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "data" / "golden"

#: (rows, columns) uniforms in float64 for the Gumbel noise of one step.
Uniforms = Callable[[int, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the network has to know of a checkpoint's config."""

    n_heads: int
    rope_theta: float
    rms_norm_eps: float
    mask_id: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run of the loop, in the reference's terms."""

    length: int
    steps: int
    block_length: int
    temperature: float


class Llada(torch.nn.Module):
    """LLaDA with its weights in two dicts: one for each block, one for embedding, last norm and head.

    Args:
      shape: see Shape.
      blocks: for each layer, name -> (out, in) matrix or (D,) norm weight, names as in the checkpoint.
      outside: "wte" (V, D), "ln_f" (D,), "ff_out" (V, D).
    """

    def __init__(self, shape: Shape, blocks: list[dict[str, torch.Tensor]], outside: dict[str, torch.Tensor]):
        super().__init__()
        self.shape, self.blocks, self.outside = shape, blocks, outside

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V) of tokens (B, T) int64."""
        x = F.embedding(tokens, self.outside["wte"])
        rotation = self._rotation(tokens.shape[1], x)
        for block in self.blocks:
            x = x + self._attention(block, self._norm(x, block["attn_norm"]), rotation)
            h = self._norm(x, block["ff_norm"])
            gated = F.silu(F.linear(h, block["ff_proj"])) * F.linear(h, block["up_proj"])
            x = x + F.linear(gated, block["ff_out"])
        return F.linear(self._norm(x, self.outside["ln_f"]), self.outside["ff_out"])

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.shape.rms_norm_eps)

    def _rotation(self, length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        width = like.shape[-1] // self.shape.n_heads
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=like.device) / width
        positions = torch.arange(length, dtype=torch.float32, device=like.device)
        angles = positions[:, None] / self.shape.rope_theta**exponents
        return angles.cos(), angles.sin()

    def _attention(
        self, block: dict[str, torch.Tensor], h: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        def heads(name: str) -> torch.Tensor:
            return F.linear(h, block[name]).unflatten(-1, (self.shape.n_heads, -1)).transpose(1, 2)

        q, k = (_rotated(heads(name), rotation) for name in ("q_proj", "k_proj"))
        mixed = F.scaled_dot_product_attention(q, k, heads("v_proj"))
        return F.linear(mixed.transpose(1, 2).flatten(2), block["attn_out"])


def _rotated(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cos, sin = rotation
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)


@torch.inference_mode()
def denoise(
    model: Callable[[torch.Tensor], torch.Tensor],
    prompts: torch.Tensor,
    settings: Settings,
    mask_id: int,
    uniforms: Uniforms | None = None,
    watch: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """The reference's loop.

    Args:
      model: tokens (B, T) -> logits (B, T, V).
      prompts: (B, P) int64, all of one length.
      settings: see Settings.
      mask_id: the mask token.
      uniforms: (step, logits) -> recorded float64 uniforms in place of fresh ones.
      watch: called with the rows (B, P + G) after every step.

    Returns:
      (B, P + G) int64.
    """
    batch, width = prompts.shape
    rows = torch.full((batch, width + settings.length), mask_id, dtype=torch.long, device=prompts.device)
    rows[:, :width] = prompts
    steps = settings.steps * settings.block_length // settings.length
    for block in range(settings.length // settings.block_length):
        end = width + (block + 1) * settings.block_length
        counts = _transfer_counts((rows[:, end - settings.block_length : end] == mask_id).sum(1), steps)
        for step in range(steps):
            masked = rows == mask_id
            logits = model(rows)
            u = uniforms(block * steps + step, logits) if uniforms else None
            chosen = torch.argmax(_with_noise(logits, settings.temperature, u), dim=-1)
            shares = F.softmax(logits, dim=-1)
            confidence = torch.gather(shares, -1, chosen.unsqueeze(-1)).squeeze(-1)
            confidence[:, end:] = -np.inf
            confidence = torch.where(masked, confidence, -np.inf)
            for row in range(batch):
                _, index = torch.topk(confidence[row], k=int(counts[row, step]))
                rows[row, index] = chosen[row, index]
            if watch:
                watch(rows)
    return rows


def _with_noise(logits: torch.Tensor, temperature: float, uniforms: torch.Tensor | None) -> torch.Tensor:
    """exp(logits) / (-ln u)^T in float64, as the reference adds its noise."""
    if temperature == 0:
        return logits
    logits = logits.to(torch.float64)
    noise = torch.rand_like(logits, dtype=torch.float64) if uniforms is None else uniforms
    return logits.exp() / (-torch.log(noise)) ** temperature


def _transfer_counts(masks: torch.Tensor, steps: int) -> torch.Tensor:
    base, rest = masks // steps, masks % steps
    return base[:, None] + (torch.arange(steps, device=masks.device) < rest[:, None])


def from_arrays(params: dict, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Llada:
    """The network with the weights of this project's parameter tree (numpy arrays, (in, out), stacked layers)."""

    def tensor(array: np.ndarray, transpose: bool) -> torch.Tensor:
        # Through a copy in float32: numpy has no bfloat16, and torch wants arrays that it may write to.
        taken = np.asarray(array, np.float32)
        return torch.from_numpy(np.array(taken.T if transpose else taken, order="C")).to(device, dtype)

    layers = len(params["blocks"]["attn_norm"]["weight"])
    blocks = [
        {name: tensor(leaf["weight"][i], leaf["weight"].ndim == 3) for name, leaf in params["blocks"].items()}
        for i in range(layers)
    ]
    outside = {"wte": tensor(params["wte"]["weight"], False), "ln_f": tensor(params["ln_f"]["weight"], False)}
    outside["ff_out"] = tensor(params["ff_out"]["weight"], True)
    return Llada(shape, blocks, outside)


def golden_model() -> tuple[Llada, int]:
    """The network of the golden checkpoint, and its mask token."""
    config, params = hf.load_checkpoint(GOLDEN / "tiny_llada")
    shape = Shape(config.n_heads, config.rope_theta, config.rms_norm_eps, config.mask_token_id)
    return from_arrays(params, shape), config.mask_token_id


def golden_cases() -> dict[str, dict[str, np.ndarray]]:
    """Recorded runs of the reference that need nothing beyond this loop: no guidance, bias, padding or random order."""
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDEN / "generate.npz") as arrays:
        for key in arrays.files:
            name, _, field = key.partition("/")
            cases.setdefault(name, {})[field] = arrays[key]
    plain = {name: case for name, case in cases.items() if "logit_bias" not in case and "attention_mask" not in case}
    return {
        name: case
        for name, case in plain.items()
        if float(case["cfg_scale"]) == 0 and str(case["remasking"]) == "low_confidence"
    }


def check() -> int:
    """Runs the loop on the golden cases and compares the rows after every step.

    Returns:
      The number of steps that were compared.

    Raises:
      AssertionError: a token differs.
    """
    model, mask_id = golden_model()
    compared = 0
    for name, case in golden_cases().items():
        seen: list[np.ndarray] = []
        draws = torch.from_numpy(case["draws"]) if "draws" in case else None
        prompts = torch.from_numpy(case["prompt"]).long()
        recorded = None if draws is None else functools.partial(_draws_of, draws)
        denoise(model, prompts, settings_of(case), mask_id, recorded, lambda rows, seen=seen: seen.append(rows.clone()))
        if not np.array_equal(torch.stack(seen).numpy(), case["x_after"]):
            raise AssertionError(f"the PyTorch loop leaves the golden trajectory {name}")
        compared += len(seen)
    return compared


def settings_of(case: dict[str, np.ndarray]) -> Settings:
    """The settings of a golden case."""
    length, steps, block_length = (int(case[key]) for key in ("gen_length", "steps", "block_length"))
    return Settings(length, steps, block_length, float(case["temperature"]))


def _draws_of(recorded: torch.Tensor, step: int, logits: torch.Tensor) -> torch.Tensor:
    del logits
    return recorded[step]
