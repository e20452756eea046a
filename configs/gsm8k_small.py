"""The same recipe on real input: GSM8K's own questions and reasoning traces, with a small model.

SFT on the training traces (calculator annotations stripped), IGPO with hints cut from them, evaluation on test
questions. A model of this size solves few of them; every part is real.

Launch, with GSM8K's train.jsonl and test.jsonl in DIR (leave the path out to download them):
  python -m igpo_jax.train --config=configs/gsm8k_small.py --config.data.path=DIR --workdir=runs/gsm8k
"""

from igpo_jax.data.settings import DataSettings
from igpo_jax.data.tokenizers import TokenizerSettings
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.errors import check_choice
from igpo_jax.rl.rollout import RolloutSettings
from igpo_jax.training.checkpoints import CheckpointSettings
from igpo_jax.training.evaluation import EvaluationSettings
from igpo_jax.training.optimizers import OptimizerSettings
from igpo_jax.training.rl import RlSettings
from igpo_jax.training.run_settings import ModelSettings, RunSettings
from igpo_jax.training.sft import SftSettings

#: variant -> what all-wrong groups draw a second time.
VARIANTS = {"igpo": "inpaint", "grpo": "plain"}


def get_config(variant: str = "igpo") -> RunSettings:
    """GSM8K with a small model, as IGPO or as the size-matched GRPO baseline ("grpo")."""
    check_choice("the config's variant", variant, VARIANTS)
    rollout = RolloutSettings(groups=4, group_size=8, rows_per_program=32, second_batch=VARIANTS[variant])
    return RunSettings(
        name=variant,
        prompt_length=240,  # the longest test question has 233 tokens; no test question is left out
        long_prompts="drop",
        model=ModelSettings(d_model=96, n_layers=3, n_heads=4, n_kv_heads=4, mlp_hidden_size=256),
        data=DataSettings(name="gsm8k"),
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=2048),
        sampler=Sampler(length=128, steps=64, block_length=32, temperature=1.0),
        sft=SftSettings(
            steps=800,
            batch_size=32,
            length_buckets=4,
            optimizer=OptimizerSettings(
                learning_rate=2e-3,
                schedule="wsd",
                warmup_steps=50,
                decay_fraction=0.3,
                final_learning_rate=2e-4,
                weight_decay=0.01,
                clip_norm=1.0,
            ),
        ),
        rl=RlSettings(
            steps=6,
            inner_updates=2,
            save_rollouts_every=1,
            rollout=rollout,
            optimizer=OptimizerSettings(
                learning_rate=1e-4, schedule="constant", warmup_steps=5, weight_decay=0.01, clip_norm=1.0
            ),
        ),
        evaluation=EvaluationSettings(questions=128, rows_per_program=64),
        checkpoints=CheckpointSettings(every=50),
    )
