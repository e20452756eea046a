"""What every stage of a run shares: where it writes, what it computes on, and the questions of each split."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp

from convert.source import find_tokenizer, load_model, read_config
from igpo_jax import settings as settings_lib
from igpo_jax.data import pipeline, report, templates, tokenizers
from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.parallel import processes
from igpo_jax.parallel.mesh import check_processes, make_mesh
from igpo_jax.rewards.verdict import Judge
from igpo_jax.rl import sampling
from igpo_jax.rl.questions import questions_of
from igpo_jax.rl.rollout import Question
from igpo_jax.training import accounting, console, evaluation, metrics, run_directory, trackers
from igpo_jax.training.files import write_whole
from igpo_jax.training.journal import Journal
from igpo_jax.training.metrics import MetricsLog
from igpo_jax.training.prepared_data import prepare_data
from igpo_jax.training.run_directory import AS_BEFORE, Resuming
from igpo_jax.training.run_settings import ModelSettings, RunSettings
from igpo_jax.training.stopping import Stop


@dataclasses.dataclass
class Run:
    """One run directory and everything its stages have in common."""

    settings: RunSettings
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    model: llada.Model
    tokenizer: tokenizers.Tokenizer
    judge: Journal
    log: MetricsLog
    encoded: dict[str, pipeline.Encoded]  # by split: sft, rl, test
    questions: dict[str, list[Question]]  # by split: rl, test
    stop: Stop
    first_start: float = 0.0  # when the run was started for the first time, in seconds since 1970

    @property
    def key(self) -> jax.Array:
        """The root key that every draw on the device derives from."""
        return jax.random.key(self.settings.seed)

    def sampler_context(self, temperature: float, rows_per_program: int) -> sampling.SamplerContext:
        """The run's sampler at a temperature of its own."""
        sampler = dataclasses.replace(self.settings.sampler, temperature=temperature)
        context = sampling.SamplerContext(self.model, sampler, self.mesh, rows_per_program, self.settings.seed)
        # Several processes would have to wait for each other, and so for the devices, before every program.
        return context if jax.process_count() > 1 else dataclasses.replace(context, safe_point=self.stop.point)

    def evaluate(self, params: llada.Params) -> evaluation.Evaluation:
        """Answers the held-out questions with plain parameters."""
        how = self.settings.evaluation
        policy = jax.jit(llada.cast, static_argnums=1)(llada.Policy(params=params), self.model)
        context = self.sampler_context(how.temperature, how.rows_per_program)
        asked = self.questions["test"][: how.questions or None]
        return evaluation.evaluate(policy, asked, how.samples, context, self.tokenizer.decode, self.judge)


def prepare(
    settings: RunSettings,
    workdir: pathlib.Path,
    judge: Judge,
    resuming: Resuming = AS_BEFORE,
    stop: Stop | None = None,
) -> tuple[Run, llada.Params]:
    """Builds data, tokenizer, mesh and starting parameters; stores config and tokenizer in the run directory.

    Args:
      settings: the whole configuration.
      workdir: the run directory, made if missing.
      judge: worker pool, running.
      resuming: what may differ from the run that the directory holds.
      stop: tells when the run is asked to end; None where nobody asks.

    Returns:
      The run and its starting parameters on the mesh.

    Raises:
      UserError: bad data, an unwritable directory or one that holds another run, a checkpoint that disagrees with the
        tokenizer. What an earlier run left in the directory is then untouched.
    """
    with processes.main_first():
        _writable(workdir)
        changes = run_directory.check_settings(settings, workdir, resuming)
    mesh = make_mesh(settings.mesh)
    check_processes(mesh)
    settings.check_shards(mesh.shape["data"] * mesh.shape["fsdp"])
    settings.check_groups(jax.process_count())
    run_directory.check_shared(workdir)
    with processes.main_first():
        data = prepare_data(settings, workdir)
    settings, tokenizer, encoded = data.settings, data.tokenizer, data.encoded
    template = templates.get_template(settings.template)
    facts = run_directory.environment(mesh, template.hash, encoded)
    with processes.main_first():
        changes += run_directory.check_environment(facts, workdir, resuming)
    config, params = _model(settings, tokenizer, mesh)
    with processes.main_first():
        log = _log(settings, workdir)
    run = Run(
        settings=settings,
        workdir=workdir,
        mesh=mesh,
        model=llada.Model(config, settings.compute),
        tokenizer=tokenizer,
        judge=Journal(judge, workdir, jax.process_index()),
        log=log,
        encoded=encoded,
        questions={name: questions_of(encoded[name], settings.rl.hints) for name in ("rl", "test") if name in encoded},
        stop=stop or Stop(),
        first_start=processes.from_main(lambda: run_directory.first_start(workdir)),
    )
    processes.wait_for_all()  # all have read what the directory held before
    if processes.is_main():
        run_directory.take(changes, workdir, ("sft", settings.name))
        _store(run, facts, data.reports)
    return run, params


def _log(settings: RunSettings, workdir: pathlib.Path) -> MetricsLog:
    """The metrics log, with the tracker that the settings ask for; only the main process writes it."""
    if not processes.is_main():
        return metrics.FollowedLog(workdir)
    known = settings_lib.to_config_dict(settings).to_dict()
    tracker = trackers.make_tracker(settings.tracker, workdir.name, known, metrics.last_steps(workdir))
    return MetricsLog(workdir, tracker=tracker)


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


def _model(
    settings: RunSettings, tokenizer: tokenizers.Tokenizer, mesh: jax.sharding.Mesh
) -> tuple[llada.ModelConfig, llada.Params]:
    """Configuration and starting parameters, sharded over the mesh."""
    if settings.model.checkpoint:
        source = settings.model.checkpoint
        config = read_config(source)
        # Whatever is wrong with the small files is said before gigabytes are read.
        _agree(config, tokenizer, source)
        _same_ids(find_tokenizer(source), tokenizer, settings)
        _check_context(config, settings)
        check_shape(config, settings.model)
        return load_model(source, mesh, "float32")[:2]
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


def _same_ids(known: tokenizers.Tokenizer | None, tokenizer: tokenizers.Tokenizer, settings: RunSettings) -> None:
    """Raises UserError where the run's ids stand for other tokens than those that the checkpoint has learnt."""
    source, kind = settings.model.checkpoint, settings.tokenizer.kind
    if known is None:
        if kind != "path":
            raise UserError(
                f"{source} has no tokenizer files, and ids that tokenizer.kind '{kind}' makes from the data mean "
                "nothing to its weights; set tokenizer.kind to 'path' and tokenizer.path to the folder of its tokenizer"
            )
        return
    learnt = {number: token for token, number in known.fast.get_vocab().items()}
    others = [token for token, number in tokenizer.fast.get_vocab().items() if learnt.get(number, token) != token]
    if others:
        raise UserError(
            f"{len(others)} of the run's {tokenizer.vocab_size} token ids stand for other tokens in {source}; use its "
            f"tokenizer: set tokenizer.kind to 'path' and tokenizer.path to {known.source}"
        )


def _check_context(config: llada.ModelConfig, settings: RunSettings) -> None:
    """Raises UserError where prompt and completion together are longer than the checkpoint's rows."""
    completion = max(settings.sampler.length, settings.sft_length if settings.sft.steps else 0)
    if settings.prompt_length + completion > config.max_sequence_length:
        raise UserError(
            f"prompts of {settings.prompt_length} tokens (prompt_length) and completions of {completion} do not fit "
            f"into the {config.max_sequence_length} positions of {settings.model.checkpoint}; lower prompt_length, "
            "sampler.length or sft.completion_length"
        )


def _store(run: Run, facts: dict[str, Any], reports: dict[str, dict[str, Any]]) -> None:
    """Writes the tokenizer, config.json, the model's configuration, the data report and the machine's facts."""
    if not (run.workdir / "tokenizer" / "tokenizer.json").exists():
        draft = run.workdir / ".tokenizer.draft"
        run.tokenizer.save(draft)
        shutil.rmtree(run.workdir / "tokenizer", ignore_errors=True)
        draft.rename(run.workdir / "tokenizer")
    write_whole(run.workdir / "config.json", settings_lib.to_json(run.settings) + "\n")
    write_whole(run.workdir / "model_config.json", json.dumps(run.model.config.to_hf(), indent=2) + "\n")
    report.write_reports(run.workdir, reports)
    write_whole(run.workdir / "environment.json", json.dumps(facts, indent=2) + "\n")
    where = f" in {facts['processes']} processes" if facts["processes"] > 1 else ""
    plural = "s" if facts["devices"] > 1 else ""
    console.note(f"{facts['devices']} {facts['platform']} device{plural}{where}, {run.workdir}")
    accounting.note_unknown_device(run.mesh)
    for line in report.summary(reports):
        console.note(line)
