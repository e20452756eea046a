"""What every stage of a run shares: where it writes, what it computes on, and the questions of each split."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from convert.source import load_model
from igpo_jax import settings as settings_lib
from igpo_jax.data import pipeline, splits, templates, tokenizers
from igpo_jax.data.examples import Example
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel.mesh import make_mesh
from igpo_jax.rewards.pool import JudgePool
from igpo_jax.rl import sampling
from igpo_jax.rl.questions import questions_of
from igpo_jax.rl.rollout import Question
from igpo_jax.training import console, evaluation, metrics, trackers
from igpo_jax.training.health import HealthSettings
from igpo_jax.training.metrics import MetricsLog
from igpo_jax.training.run_settings import ModelSettings, RunSettings
from igpo_jax.training.sft import LONG_COMPLETIONS


@dataclasses.dataclass
class Run:
    """One run directory and everything its stages have in common."""

    settings: RunSettings
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    model: llada.Model
    tokenizer: tokenizers.Tokenizer
    judge: JudgePool
    log: MetricsLog
    encoded: dict[str, pipeline.Encoded]  # by split: sft, rl, test
    questions: dict[str, list[Question]]  # by split: rl, test

    @property
    def key(self) -> jax.Array:
        """The root key that every draw on the device derives from."""
        return jax.random.key(self.settings.seed)

    def sampler_context(self, temperature: float, rows_per_program: int) -> sampling.SamplerContext:
        """The run's sampler at a temperature of its own."""
        sampler = dataclasses.replace(self.settings.sampler, temperature=temperature)
        return sampling.SamplerContext(self.model, sampler, self.mesh, rows_per_program, self.settings.seed)

    def evaluate(self, params: llada.Params) -> evaluation.Evaluation:
        """Answers the held-out questions with plain parameters."""
        how = self.settings.evaluation
        policy = jax.jit(llada.cast, static_argnums=1)(llada.Policy(params=params), self.model)
        context = self.sampler_context(how.temperature, how.rows_per_program)
        asked = self.questions["test"][: how.questions or None]
        return evaluation.evaluate(policy, asked, how.samples, context, self.tokenizer.decode, self.judge)


def prepare(settings: RunSettings, workdir: pathlib.Path, judge: JudgePool) -> tuple[Run, llada.Params]:
    """Builds data, tokenizer, mesh and starting parameters; stores config and tokenizer in the run directory.

    Args:
      settings: the whole configuration.
      workdir: the run directory, made if missing.
      judge: worker pool, running.

    Returns:
      The run and its starting parameters on the mesh.

    Raises:
      UserError: bad data, an unwritable directory or one that holds another run, a checkpoint that disagrees with the
        tokenizer. What an earlier run left in the directory is then untouched.
    """
    _writable(workdir)
    _check_same_run(settings, workdir)
    mesh = make_mesh(settings.mesh)
    settings.check_shards(mesh.shape["data"] * mesh.shape["fsdp"])
    examples = {split: splits.open_split(settings.data, split, workdir / "data") for split in _needed(settings)}
    tokenizer = _tokenizer(settings, examples, workdir)
    template = templates.get_template(settings.template)
    encoded = {
        split: pipeline.encode_examples(
            rows,
            template,
            tokenizer,
            settings.prompt_length,
            settings.sft_length if split == "sft" else settings.sampler.length,
            long_prompts=settings.long_prompts,
            long_completions=LONG_COMPLETIONS[settings.sft.long_completions] if split == "sft" else "keep",
        )
        for split, rows in examples.items()
    }
    config, params = _model(settings, tokenizer, mesh)
    run = Run(
        settings=settings,
        workdir=workdir,
        mesh=mesh,
        model=llada.Model(config, settings.compute),
        tokenizer=tokenizer,
        judge=judge,
        log=_log(settings, workdir),
        encoded=encoded,
        questions={
            split: questions_of(encoded[split], settings.rl.hints) for split in ("rl", "test") if split in encoded
        },
    )
    _store(run)
    return run, params


def _log(settings: RunSettings, workdir: pathlib.Path) -> MetricsLog:
    """The metrics log, with the tracker that the settings ask for."""
    known = settings_lib.to_config_dict(settings).to_dict()
    tracker = trackers.make_tracker(settings.tracker, workdir.name, known, metrics.last_steps(workdir))
    return MetricsLog(workdir, tracker=tracker)


def _needed(settings: RunSettings) -> tuple[str, ...]:
    """The splits that the configured stages read."""
    return (*(("sft",) if settings.sft.steps else ()), *(("rl",) if settings.rl.steps else ()), "test")


def _writable(workdir: pathlib.Path) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; choose a folder")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".write_test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror}); choose a folder that you may write to"
        ) from error


#: What may change when a run goes on: how long it is, what it logs and keeps, and how the work is laid out.
_MAY_CHANGE = frozenset(
    {
        *("sft.steps", "sft.micro_batches", "sft.logprob_chunk", "sft.log_every"),
        *("rl.steps", "rl.micro_batches", "rl.score_batches", "rl.logprob_chunk", "rl.save_rollouts_every"),
        *("rl.rollout.rows_per_program", "evaluation.rows_per_program", "evaluation.every"),
        *("mesh.data", "mesh.fsdp", "mesh.tensor", "cpu_devices", "compute.remat", "data.path"),
        *("judge.workers", "checkpoints.every", "checkpoints.keep_last", "checkpoints.keep_best"),
        *(f"health.{field.name}" for field in dataclasses.fields(HealthSettings)),
        *(f"tracker.{field.name}" for field in dataclasses.fields(trackers.TrackerSettings)),
    }
)


def _check_same_run(settings: RunSettings, workdir: pathlib.Path) -> None:
    """Raises UserError where the directory holds a run with other settings, which this one would mix with."""
    stored = workdir / "config.json"
    if not stored.exists():
        return
    try:
        old = json.loads(stored.read_text())
    except ValueError as error:
        raise UserError(f"{stored} is not valid JSON ({error}); restore it, or use another --workdir") from error
    # SFT that RL has started from is not made longer: the reference would be another one halfway through.
    rl_began = any(path.name.isdigit() for path in (workdir / "checkpoints" / settings.name).glob("*"))
    fixed = {"sft.steps"} if rl_began else set()
    for path, before, now in settings_lib.changed_fields(old, settings):
        known = settings_lib.ABSENT not in (before, now)
        if path.startswith("rl.") and not rl_began:
            continue
        if known and (path in fixed or path not in _MAY_CHANGE):
            raise UserError(
                f"{workdir} holds a run with {path} {before!r}, but this one has {now!r}; "
                f"use another --workdir, or go on with --config.{path}={before}"
            )


def _tokenizer(
    settings: RunSettings, examples: Mapping[str, Sequence[Example]], workdir: pathlib.Path
) -> tokenizers.Tokenizer:
    """The tokenizer of the run directory where there is one, else a new one."""
    stored = workdir / "tokenizer"
    if (stored / "tokenizer.json").exists():
        return tokenizers.load_tokenizer(stored, settings.tokenizer.chat)
    template = templates.get_template(settings.template)
    rows = examples.get("sft") or examples.get("rl") or examples["test"]
    texts = pipeline.tokenizer_texts(settings.data, rows, template)
    return tokenizers.build_tokenizer(settings.tokenizer, texts)


def _model(
    settings: RunSettings, tokenizer: tokenizers.Tokenizer, mesh: jax.sharding.Mesh
) -> tuple[llada.ModelConfig, llada.Params]:
    """Configuration and starting parameters, sharded over the mesh."""
    if settings.model.checkpoint:
        config, params, _ = load_model(settings.model.checkpoint, mesh, "float32")
        _agree(config, tokenizer, settings.model.checkpoint)
        check_shape(config, settings.model)
        return config, params
    config = fresh_config(settings, tokenizer, mesh.shape["tensor"])
    make = jax.jit(llada.init, static_argnums=(1, 2), out_shardings=llada.shardings(config, mesh))
    return config, make(jax.random.fold_in(jax.random.key(settings.seed), 0), config, jnp.float32)


def fresh_config(settings: RunSettings, tokenizer: tokenizers.Tokenizer, ways: int) -> llada.ModelConfig:
    """The shape of a model from scratch; ``ways`` are the devices on the tensor axis, which divide the embedding."""
    return llada.ModelConfig(
        **settings.model.sizes,
        vocab_size=tokenizer.vocab_size,
        embedding_size=-(-tokenizer.vocab_size // ways) * ways,
        max_sequence_length=settings.prompt_length + max(settings.sampler.length, settings.sft_length),
        mask_token_id=tokenizer.mask_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )


def check_shape(config: llada.ModelConfig, wanted: ModelSettings) -> None:
    """Raises UserError where a checkpoint's sizes are not those of the named shape that the settings ask for."""
    for field, value in wanted.sizes.items() if wanted.shape else ():
        if getattr(config, field) != value:
            raise UserError(
                f"{wanted.checkpoint}/config.json has {field} {getattr(config, field)}, but model.shape is "
                f"'{wanted.shape}' with {value}; clear model.shape or take another checkpoint"
            )


def _agree(config: llada.ModelConfig, tokenizer: tokenizers.Tokenizer, source: str) -> None:
    """Raises UserError where the tokenizer's special ids are not the checkpoint's, or its ids exceed the embedding."""
    pairs = {
        "mask_token_id": (config.mask_token_id, tokenizer.mask_id),
        "eos_token_id": (config.eos_token_id, tokenizer.eos_id),
    }
    for field, (wanted, found) in pairs.items():
        if wanted != found:
            raise UserError(
                f"{source}/config.json has {field} {wanted}, but the tokenizer's is {found}; "
                "use the tokenizer that belongs to the checkpoint"
            )
    if tokenizer.vocab_size > config.embedding_size:
        raise UserError(
            f"{source}/config.json has embedding_size {config.embedding_size}, but the tokenizer has "
            f"{tokenizer.vocab_size} ids; use the tokenizer that belongs to the checkpoint"
        )


def _store(run: Run) -> None:
    """Writes the tokenizer, config.json, the model's configuration, the data report and the machine's facts."""
    reports = {split: encoded.report for split, encoded in run.encoded.items()}
    facts = {
        "devices": jax.device_count(),
        "platform": run.mesh.devices.flat[0].platform,
        "jax": jax.__version__,
        "template_hash": templates.get_template(run.settings.template).hash,
    }
    if not (run.workdir / "tokenizer" / "tokenizer.json").exists():
        run.tokenizer.save(run.workdir / "tokenizer")
    (run.workdir / "config.json").write_text(settings_lib.to_json(run.settings) + "\n")
    (run.workdir / "model_config.json").write_text(json.dumps(run.model.config.to_hf(), indent=2) + "\n")
    (run.workdir / "data_report.json").write_text(json.dumps(reports, indent=2) + "\n")
    (run.workdir / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")
    console.note(f"{facts['devices']} {facts['platform']} devices, {run.workdir}")
    for split, report in reports.items():
        if report["dropped"]:
            why = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in report["dropped"].items())
            console.note(f"{split}: {report['kept']} of {report['rows']} rows are used ({why})")
