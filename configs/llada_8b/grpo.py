"""GRPO on LLaDA-8B, the baseline of IGPO's Figures 1b and 3: all of IGPO's settings, but no hints.

Launch (the model folder and the data are described in docs/reproducing.md):
  python -m igpo_jax.train --config=configs/llada_8b/grpo.py:tpu --workdir=runs/llada_8b_grpo
  python -m igpo_jax.train --config=configs/llada_8b/grpo.py:h100,from_sft --workdir=runs/llada_8b_grpo_sft
  python -m igpo_jax.train --config=configs/llada_8b/grpo.py:h100,size_matched --workdir=runs/llada_8b_grpo_matched

Words of a variant, each kind at most once and the first one where none is given:
  hardware, start, trained   as in configs/llada_8b/igpo.py
  all-wrong groups           once (nothing more is drawn), size_matched (a second batch without hints)
"""

import dataclasses

from configs.llada_8b import common, igpo
from igpo_jax.training.run_settings import RunSettings

#: Word -> what all-wrong groups draw a second time.
SECOND = {"once": "none", "size_matched": "plain"}

_SHARED = {kind: igpo.VARIANTS[kind] for kind in ("hardware", "start", "trained")}

#: Kinds of words in the variant, the default first.
VARIANTS = _SHARED | {"all-wrong groups": tuple(SECOND)}


def get_config(variant: str = "tpu") -> RunSettings:
    """GRPO; the module's text says what the words of ``variant`` are."""
    words = common.choose(variant, VARIANTS)
    settings = igpo.base(words)
    rollout = dataclasses.replace(settings.rl.rollout, second_batch=SECOND[words["all-wrong groups"]])
    return dataclasses.replace(settings, name="grpo", rl=dataclasses.replace(settings.rl, rollout=rollout))
