"""Named changes to a run's settings."""

import dataclasses

from igpo_jax.models.lora import OFFICIAL_TARGETS
from igpo_jax.rl.objectives import Objective
from igpo_jax.rl.rollout import RewardSettings
from igpo_jax.training.run_settings import RunSettings


def official(settings: RunSettings) -> RunSettings:
    """The run as the released code (facebookresearch/igpo) would do it, its departures from the paper included.

    Changed are: sampler exits and mask draws; hints with the answer and a last chunk that is always shown, spread over
    the canvas; rewards of 3 with format terms; the first rows of a group replaced; one loss mean over all kept tokens,
    EOS filler included, with filtered hints left in the ratio; under LoRA, the four layers that its list matches. Sizes
    and rates stay those of ``settings``.
    """
    rl = settings.rl
    return dataclasses.replace(
        settings,
        sampler=dataclasses.replace(settings.sampler, eos_exit="batch", forbid_mask=False),
        rl=dataclasses.replace(
            rl,
            rollout=dataclasses.replace(rl.rollout, replace_order="first"),
            hints=dataclasses.replace(rl.hints, placement="official", exclude="statement"),
            rewards=RewardSettings(correct=3.0, format_weight=1.0),
            objective=dataclasses.replace(
                Objective.official(),
                kl_coef=rl.objective.kl_coef,
                clip_low=rl.objective.clip_low,
                clip_high=rl.objective.clip_high,
                entropy_top=rl.objective.entropy_top,
            ),
            lora=dataclasses.replace(rl.lora, targets=OFFICIAL_TARGETS),
        ),
    )
