"""The settings of a whole run: every field that a config file or ``--config.…`` can set, declared once."""

import dataclasses
import math
from typing import Any

from igpo_jax.data.settings import DataSettings
from igpo_jax.data.templates import TEMPLATES
from igpo_jax.data.tokenizers import TokenizerSettings
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.errors import UserError, check_choice
from igpo_jax.models.config import SHAPES, Compute
from igpo_jax.parallel.mesh import MeshSettings
from igpo_jax.rewards.pool import JudgeSettings
from igpo_jax.training.checkpoints import CheckpointSettings
from igpo_jax.training.evaluation import EvaluationSettings
from igpo_jax.training.health import HealthSettings
from igpo_jax.training.optimizers import OptimizerSettings, make_schedule
from igpo_jax.training.rl import RlSettings
from igpo_jax.training.sft import SftSettings
from igpo_jax.training.trackers import TrackerSettings


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Where the parameters come from: a checkpoint, or a fresh model of the given shape.

    ``shape="llada_8b"`` names LLaDA-8B's: ``plan`` then needs no checkpoint, and training refuses one of another shape.
    """

    checkpoint: str = ""  #: imported model, Hugging Face folder or run directory; empty starts from scratch
    shape: str = ""  #: a named shape ("llada_8b") in place of the fields below; a checkpoint must then have it
    d_model: int = 64  #: width of the residual stream (from scratch)
    n_layers: int = 3  #: transformer blocks (from scratch)
    n_heads: int = 4  #: query heads (from scratch)
    n_kv_heads: int = 4  #: key and value heads (from scratch)
    mlp_hidden_size: int = 192  #: columns of the gate and up projections (from scratch)
    rope_theta: float = 10000.0  #: base of the rotary frequencies (from scratch)

    def __post_init__(self) -> None:
        if self.shape:
            check_choice("model.shape", self.shape, SHAPES)

    @property
    def sizes(self) -> dict[str, Any]:
        """The fields of ModelConfig that do not come from the tokenizer, by the named shape or by the fields."""
        source = SHAPES[self.shape] if self.shape else self
        names = ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "rope_theta")
        return {name: getattr(source, name) for name in names}


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """SFT, then IGPO, with an evaluation before and after each stage."""

    name: str = "igpo"  #: name of the RL stage in metrics, checkpoints and the final table
    seed: int = 0  #: every draw of the run derives from it
    prompt_length: int = 256  #: longest prompt in tokens
    long_prompts: str = "error"  #: a prompt that does not fit: error, or drop it and count it
    template: str = "plain"  #: how a question becomes a prompt and a trace a completion
    nonfinite_limit: int = 10  #: updates skipped in a row (loss or gradient not finite) that end the run; 0 = never
    warm_up: bool = True  #: compile a stage's programs before its first batch, so that what does not fit shows at once
    cpu_devices: int = 0  #: virtual devices on CPU; 0 takes the most, up to the usable cores, that divide every batch
    model: ModelSettings = ModelSettings()
    compute: Compute = Compute()
    mesh: MeshSettings = MeshSettings()
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    sampler: Sampler = Sampler(temperature=1.2)
    sft: SftSettings = SftSettings()
    rl: RlSettings = RlSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    judge: JudgeSettings = JudgeSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    health: HealthSettings = HealthSettings()
    tracker: TrackerSettings = TrackerSettings()

    def __post_init__(self) -> None:
        """Raises UserError for a name that is no folder name, an unknown template or an impossible length."""
        check_choice("template", self.template, TEMPLATES)
        check_choice("long_prompts", self.long_prompts, ("error", "drop"))
        if not self.name.replace("_", "").replace("-", "").isalnum() or self.name in ("start", "sft", "eval"):
            raise UserError(
                f"name is '{self.name}', expected letters, digits, '-' and '_', and neither 'start', 'sft' nor 'eval'"
            )
        if self.nonfinite_limit < 0:
            raise UserError(f"nonfinite_limit is {self.nonfinite_limit}, expected 0 (never) or a number of updates")
        if self.prompt_length < 1:
            raise UserError(f"prompt_length is {self.prompt_length}, expected at least 1 token")
        if self.rl.steps and self.sampler.temperature == 0.0:
            raise UserError(
                "sampler.temperature is 0, where all completions of a group are equal and nothing can be learnt; "
                "set it above 0 (the paper: 1.2) or rl.steps to 0"
            )
        if self.rl.steps and self.rl.hints.answer_room >= self.sampler.length:
            raise UserError(
                f"rl.hints.answer_room is {self.rl.hints.answer_room}, which leaves no place for hints in "
                f"sampler.length {self.sampler.length}; lower it"
            )

        self._check_judge()
        for stage, optimizer, updates in (
            ("sft", self.sft.optimizer, self.sft.steps),
            ("rl", self.rl.optimizer, self.rl.updates if self.rl.steps else 0),
        ):
            if updates:
                _check_schedule(stage, optimizer, updates)

    @property
    def sft_length(self) -> int:
        """Canvas of SFT in tokens: its own, or the sampler's."""
        return self.sft.completion_length or self.sampler.length

    def with_sft_rows(self, rows: int) -> "RunSettings":
        """These settings with the steps that ``sft.epochs`` passes over ``rows`` rows make, where it is set."""
        if not self.sft.epochs or not self.sft.steps:
            return self
        steps = max(1, math.ceil(self.sft.epochs * rows / self.sft.batch_size))
        return dataclasses.replace(self, sft=dataclasses.replace(self.sft, steps=steps))

    def _check_judge(self) -> None:
        """Raises UserError where the judge does not know the answers of a data set that is judged."""
        for split in ("rl", "test") if self.rl.steps else ("test",):
            name = self.data.place(split)[0]
            wanted = name if name in ("countdown", "sudoku") else "math"
            if name != "jsonl" and self.judge.kind != wanted:
                raise UserError(
                    f"the split {split} is of the data set '{name}', but judge.kind is '{self.judge.kind}'; "
                    f"set --config.judge.kind={wanted}"
                )

    @property
    def batches(self) -> tuple[int, ...]:
        """Every number of rows that a compiled program sees at once, for choosing the virtual devices."""
        return tuple(self._batches.values())

    @property
    def _batches(self) -> dict[str, int]:
        """Rows of a compiled program, by the fields that make them."""
        rows, found = self.rl.rollout.rows, {"evaluation.rows_per_program": self.evaluation.rows_per_program}
        if self.sft.steps:
            found["sft.batch_size / sft.micro_batches"] = self.sft.batch_size // self.sft.micro_batches
        if self.rl.steps:
            groups = "rl.rollout.groups x group_size"
            found["rl.rollout.rows_per_program"] = self.rl.rollout.rows_per_program
            found[f"{groups} / rl.micro_batches"] = rows // self.rl.micro_batches
            found[f"{groups} / rl.score_batches"] = rows // self.rl.score_batches
        return found

    def check_groups(self, processes: int) -> None:
        """Raises UserError where a group of completions would be sampled and judged by two of ``processes``."""
        if self.rl.steps and self.rl.rollout.groups % processes:
            raise UserError(
                f"rl.rollout.groups is {self.rl.rollout.groups}, which does not divide over {processes} processes, and "
                f"a group never straddles two; make it a multiple of {processes}"
            )

    def check_shards(self, shards: int) -> None:
        """Raises UserError where a program's rows do not divide over ``shards`` devices (mesh axes data x fsdp)."""
        for fields, rows in self._batches.items():
            if rows % shards:
                raise UserError(
                    f"{fields} is {rows} rows, which do not divide over {shards} devices (mesh axes data x fsdp); "
                    f"make it a multiple of {shards}, or use another mesh"
                )


def _check_schedule(stage: str, optimizer: OptimizerSettings, updates: int) -> None:
    """Raises UserError, naming the stage, where warmup and decay do not fit into its updates."""
    try:
        make_schedule(optimizer, updates)
    except UserError as error:
        raise UserError(f"{stage}.optimizer with {updates} updates: {error}") from error
