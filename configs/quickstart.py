"""The paper's whole recipe on an embedded task, in minutes on a laptop's CPU.

A 0.17M-parameter LLaDA learns word problems about money (chains of operations on a three-digit number) by SFT on
verified traces, mostly of one to four operations. IGPO goes on with chains of up to seven, which SFT has rarely shown:
there whole groups of eight are wrong, and hints from the traces rescue most of them.

Launch:
  python -m igpo_jax.train --config=configs/quickstart.py --workdir=runs/quickstart           # IGPO
  python -m igpo_jax.train --config=configs/quickstart.py:grpo --workdir=runs/baseline        # size-matched GRPO
  python -m igpo_jax.train --config=configs/quickstart.py:official --workdir=runs/official    # as the released code
"""

from igpo_jax.data.settings import DataSettings
from igpo_jax.data.tokenizers import TokenizerSettings
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.errors import check_choice
from igpo_jax.models.config import Compute
from igpo_jax.rl.hints import HintSettings
from igpo_jax.rl.rollout import RolloutSettings
from igpo_jax.training import presets
from igpo_jax.training.checkpoints import CheckpointSettings
from igpo_jax.training.evaluation import EvaluationSettings
from igpo_jax.training.optimizers import OptimizerSettings
from igpo_jax.training.rl import RlSettings
from igpo_jax.training.run_settings import ModelSettings, RunSettings
from igpo_jax.training.sft import SftSettings

#: variant -> what all-wrong groups draw a second time.
VARIANTS = {"igpo": "inpaint", "grpo": "plain", "official": "inpaint"}


def get_config(variant: str = "igpo") -> RunSettings:
    """The quickstart, as IGPO, as the size-matched GRPO baseline, or with the released code's departures.

    Args:
      variant: "igpo"; "grpo", whose all-wrong groups draw a second plain batch; or "official".
    """
    check_choice("the config's variant", variant, VARIANTS)
    rollout = RolloutSettings(groups=48, group_size=8, rows_per_program=128, second_batch=VARIANTS[variant])
    settings = RunSettings(
        name=variant,
        prompt_length=56,
        template="plain",
        model=ModelSettings(d_model=64, n_layers=3, n_heads=4, n_kv_heads=4, mlp_hidden_size=192),
        compute=Compute(remat="context"),
        data=DataSettings(
            name="chain",
            sft_lengths=(*(1, 2, 3, 4) * 6, 5, 6, 7),
            rl_lengths=(2, 3, 4, 5, 6, 7),
            test_lengths=(1, 2, 3, 4, 5, 6, 7),
            sft_rows=20000,
            rl_rows=4000,
            test_rows=490,
        ),
        tokenizer=TokenizerSettings(kind="words"),
        sampler=Sampler(length=48, steps=24, block_length=16, temperature=1.0),
        sft=SftSettings(
            steps=1150,
            batch_size=128,
            log_every=25,
            optimizer=OptimizerSettings(
                learning_rate=3e-3,
                schedule="wsd",
                warmup_steps=50,
                decay_fraction=0.25,
                final_learning_rate=3e-4,
                b2=0.98,
                weight_decay=0.01,
                clip_norm=1.0,
            ),
        ),
        rl=RlSettings(
            steps=50,
            inner_updates=2,
            rollout=rollout,
            hints=HintSettings(answer_room=8),
            optimizer=OptimizerSettings(
                learning_rate=2e-4, schedule="linear", warmup_steps=10, b2=0.98, weight_decay=0.01, clip_norm=1.0
            ),
        ),
        evaluation=EvaluationSettings(every=25, rows_per_program=128),
        checkpoints=CheckpointSettings(every=25),
    )
    return presets.official(settings) if variant == "official" else settings
