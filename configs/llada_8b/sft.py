"""Length-aligned SFT of LLaDA-8B-Instruct (arXiv 2509.10396, Table 2): rewritten OpenR1-Math traces, 100 epochs.

2,048 rows an update, peak rate 5e-6 after 200 updates of warmup, down to 1e-6 over the last tenth; 94,000 rows make
4,590 updates. Traces of up to 1,023 tokens are learnt, longer ones dropped and counted. ``original`` is the ablation
of Figure 6: the traces as they were, cut where 4,096 tokens of prompt and completion end.

Launch (the model folder and the data are described in docs/reproducing.md):
  python -m igpo_jax.train --config=configs/llada_8b/sft.py:tpu --workdir=runs/llada_8b_sft
  python -m igpo_jax.train --config=configs/llada_8b/sft.py:h100 --workdir=runs/llada_8b_sft
  python -m igpo_jax.train --config=configs/llada_8b/sft.py:h100-8,lora --workdir=runs/llada_8b_sft_lora
  python -m igpo_jax.train --config=configs/llada_8b/sft.py:h100,original --workdir=runs/llada_8b_sft_original

Words of a variant, each kind at most once and the first one where none is given:
  hardware   tpu (v6e-64), h100 (h100-64), v5e-64, v5p-64, v6e-8, v6e-64, h100-8, h100-64
  trained    full, lora (rank 128, alpha 64, all seven layers)
  traces     rewritten, original
"""

import dataclasses

from configs.llada_8b import common
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.models.lora import LoraSettings
from igpo_jax.training.checkpoints import CheckpointSettings
from igpo_jax.training.evaluation import EvaluationSettings
from igpo_jax.training.optimizers import OptimizerSettings
from igpo_jax.training.rl import RlSettings
from igpo_jax.training.run_settings import RunSettings
from igpo_jax.training.sft import SftSettings

#: Kinds of words in the variant, the default first.
VARIANTS = {
    "hardware": common.HARDWARE_WORDS,
    "trained": ("full", "lora"),
    "traces": ("rewritten", "original"),
}

#: OpenR1-Math's rows x 100 epochs / 2,048 rows an update, for a plan; a run counts the rows that it kept.
STEPS = round(94_000 * 100 / 2048)

#: Written by ``python -m igpo_jax.rewrite --output=rewrites/openr1 ...``, see docs/rewriting.md.
REWRITTEN = "rewrites/openr1/rewritten.jsonl"

#: Tokens of the longest prompt that is learnt.
PROMPT_LENGTH = 512


def get_config(variant: str = "tpu") -> RunSettings:
    """Length-aligned SFT; the module's text says what the words of ``variant`` are."""
    words = common.choose(variant, VARIANTS)
    layout, original = common.hardware(words["hardware"]), words["traces"] == "original"
    data = common.questions("openr1") if original else common.questions("jsonl", REWRITTEN)
    rows = layout.long_rows if original else layout.sft_rows
    return RunSettings(
        name="rl",
        prompt_length=PROMPT_LENGTH,
        long_prompts="drop",
        template="paper",
        model=common.model(common.INSTRUCT),
        compute=common.compute(layout),
        mesh=common.mesh(layout),
        data=dataclasses.replace(data, sft_fraction=1.0),
        tokenizer=common.tokenizer(),
        sampler=Sampler(length=512, steps=256, block_length=32, temperature=0.0),
        sft=SftSettings(
            steps=STEPS,
            epochs=100.0,
            batch_size=2048,
            micro_batches=layout.parts(2048, rows),
            completion_length=4096 - PROMPT_LENGTH if original else 1024,
            long_completions="cut" if original else "drop",
            lora=common.LORA if words["trained"] == "lora" else LoraSettings(),
            optimizer=OptimizerSettings(
                learning_rate=5e-6,
                schedule="wsd",
                warmup_steps=200,
                decay_fraction=0.1,
                final_learning_rate=1e-6,
            ),
        ),
        rl=RlSettings(steps=0),
        evaluation=EvaluationSettings(rows_per_program=layout.devices * layout.rollout_rows),
        checkpoints=CheckpointSettings(every=200),
    )
