"""GRPO on LLaDA-8B, the baselines of IGPO's Table 1 and Figures 1b and 3: all of IGPO's settings, but no hints.

DiffuGRPO and UniGRPO change the likelihood estimator and the objective alone: sampling, data, sizes and rates stay
IGPO's, so that a comparison is one of the method. Both take a ratio of each token.

Launch (the model folder and the data are described in docs/reproducing.md):
  python -m igpo_jax.train --config=configs/llada_8b/grpo.py:tpu --workdir=runs/llada_8b_grpo
  python -m igpo_jax.train --config=configs/llada_8b/grpo.py:h100,from_sft --workdir=runs/llada_8b_grpo_sft
  python -m igpo_jax.train --config=configs/llada_8b/grpo.py:h100,size_matched --workdir=runs/llada_8b_grpo_matched
  python -m igpo_jax.train --config=configs/llada_8b/grpo.py:h100,diffugrpo --workdir=runs/llada_8b_diffugrpo

Words of a variant, each kind at most once and the first one where none is given:
  hardware, start, trained   as in configs/llada_8b/igpo.py
  all-wrong groups           once (nothing more is drawn), size_matched (a second batch without hints)
  method                     grpo (IGPO's own likelihood and ratio), diffugrpo (d1's), unigrpo (MMaDA's)
"""

import dataclasses
from typing import Any

from configs.llada_8b import common, igpo
from igpo_jax.rl.objectives import Objective
from igpo_jax.training.rl import RlSettings
from igpo_jax.training.run_settings import RunSettings

#: Word -> what all-wrong groups draw a second time.
SECOND = {"once": "none", "size_matched": "plain"}

#: Word -> likelihood estimator and objective. d1's clip and KL are those that it ships, its loss one mean over tokens;
#: MMaDA publishes neither, so UniGRPO has IGPO's clip and KL, and each response is averaged over its masked tokens.
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "diffugrpo": {
        "estimator": "prompt_masking",
        "objective": Objective(
            ratio="token",
            aggregation="token_pool",
            clip_low=0.5,
            clip_high=0.5,
            kl_coef=0.04,
            kl_on_zero_spread=True,
        ),
    },
    "unigrpo": {"estimator": "structured_noising", "objective": Objective(ratio="token")},
}

_SHARED = {kind: igpo.VARIANTS[kind] for kind in ("hardware", "start", "trained")}

#: Kinds of words in the variant, the default first.
VARIANTS = _SHARED | {"all-wrong groups": tuple(SECOND), "method": tuple(METHODS)}


def get_config(variant: str = "tpu") -> RunSettings:
    """GRPO; the module's text says what the words of ``variant`` are."""
    words = common.choose(variant, VARIANTS)
    settings = igpo.base(words)
    rollout = dataclasses.replace(settings.rl.rollout, second_batch=SECOND[words["all-wrong groups"]])
    rl: RlSettings = dataclasses.replace(settings.rl, rollout=rollout, **METHODS[words["method"]])
    return dataclasses.replace(settings, name=words["method"], rl=rl)
