"""IGPO on LLaDA-8B with the paper's Table 2 (arXiv 2509.10396): 64 groups of 8, 4 updates for each rollout.

The learning rate falls linearly over ten epochs of the questions (8,000 updates); the reported run stops at 1,440
updates, which are 360 rollouts, where the rate still has about 82% of its peak.

Launch (the model folder and the data are described in docs/reproducing.md):
  python -m igpo_jax.train --config=configs/llada_8b/igpo.py:tpu,from_sft --workdir=runs/llada_8b_igpo
  python -m igpo_jax.train --config=configs/llada_8b/igpo.py:h100,from_sft --workdir=runs/llada_8b_igpo
  python -m igpo_jax.train --config=configs/llada_8b/igpo.py:h100,eta0.4 --workdir=runs/llada_8b_eta0.4
  python -m igpo_jax.train --config=configs/llada_8b/igpo.py:h100-8,lora --workdir=runs/llada_8b_lora

Words of a variant, each kind at most once and the first one where none is given:
  hardware     tpu (v6e-64), h100 (h100-64), v5e-64, v5p-64, v6e-8, v6e-64, h100-8, h100-64
  start        from_instruct, from_sft (rewritten traces), from_original_sft
  trained      full, lora (rank 128, alpha 64, all seven layers)
  hints shown  eta0.2-0.6 (each completion its own share), or one share for all: eta0.2, eta0.4, eta0.6, eta0.8, eta1.0
  hints learnt tau0.2, tau0.1, tau0.5, tau0.8, tau1.0 (no filter)
  departures   paper, official (what the released code does differently)
"""

import dataclasses

from configs.llada_8b import common
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.models.lora import LoraSettings
from igpo_jax.rl.hints import HintSettings
from igpo_jax.rl.objectives import Objective
from igpo_jax.rl.rollout import RolloutSettings
from igpo_jax.training import presets
from igpo_jax.training.checkpoints import CheckpointSettings
from igpo_jax.training.evaluation import EvaluationSettings
from igpo_jax.training.optimizers import OptimizerSettings
from igpo_jax.training.rl import RlSettings
from igpo_jax.training.run_settings import RunSettings
from igpo_jax.training.sft import SftSettings

#: Word -> lowest and highest share of chunks that a completion is shown.
ETA = {"eta0.2-0.6": (0.2, 0.6)} | {f"eta{share}": (share, share) for share in (0.2, 0.4, 0.6, 0.8, 1.0)}

#: Word -> share of hint tokens, those of highest entropy, that are learnt from.
TAU = {f"tau{share}": share for share in (0.2, 0.1, 0.5, 0.8, 1.0)}

#: Kinds of words in the variant, the default first.
VARIANTS = {
    "hardware": common.HARDWARE_WORDS,
    "start": tuple(common.STARTS),
    "trained": ("full", "lora"),
    "hints shown": tuple(ETA),
    "hints learnt": tuple(TAU),
    "departures": ("paper", "official"),
}


def get_config(variant: str = "tpu") -> RunSettings:
    """IGPO; the module's text says what the words of ``variant`` are."""
    words = common.choose(variant, VARIANTS)
    low, high = ETA[words["hints shown"]]
    settings = base(words)
    rl = dataclasses.replace(
        settings.rl,
        hints=HintSettings(ratio_low=low, ratio_high=high, chunk_min=5, chunk_max=10),
        objective=dataclasses.replace(settings.rl.objective, entropy_top=TAU[words["hints learnt"]]),
    )
    settings = dataclasses.replace(settings, name="igpo", rl=rl)
    if words["departures"] == "official":
        return presets.official(dataclasses.replace(settings, template="official"))
    return settings


def base(words: dict[str, str]) -> RunSettings:
    """What IGPO and GRPO have in common.

    Args:
      words: the hardware, the start and what is trained, as in ``VARIANTS``.
    """
    layout = common.hardware(words["hardware"])
    rollout = RolloutSettings(
        groups=64,
        group_size=8,
        rows_per_program=min(512, layout.devices * layout.rollout_rows),
        replace_fraction=0.5,
    )
    parts = layout.parts(rollout.rows, layout.update_rows)
    return RunSettings(
        prompt_length=384,
        long_prompts="drop",
        template="paper",
        model=common.model(common.STARTS[words["start"]]),
        compute=common.compute(layout),
        mesh=common.mesh(layout),
        data=dataclasses.replace(common.questions("metamath"), sft_fraction=0.0),
        tokenizer=common.tokenizer(),
        sampler=Sampler(length=256, steps=128, block_length=32, temperature=1.2),
        sft=SftSettings(steps=0),
        rl=RlSettings(
            steps=360,
            inner_updates=4,
            micro_batches=parts,
            score_batches=parts,
            rollout=rollout,
            objective=Objective(clip_low=0.2, clip_high=0.2, kl_coef=0.01),
            lora=common.LORA if words["trained"] == "lora" else LoraSettings(),
            optimizer=OptimizerSettings(
                learning_rate=5e-7,
                schedule="linear",
                warmup_steps=50,
                horizon=8000,
                b1=0.9,
                b2=0.99,
                weight_decay=0.1,
                clip_norm=0.2,
            ),
        ),
        evaluation=EvaluationSettings(every=24, rows_per_program=rollout.rows_per_program),
        checkpoints=CheckpointSettings(every=24),
    )
