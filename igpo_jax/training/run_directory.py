"""Whether a run directory may be gone on with: the same settings, data and devices, or leave to take other ones."""

import dataclasses
import hashlib
import json
import pathlib
import secrets
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from igpo_jax import settings as settings_lib
from igpo_jax.errors import UserError
from igpo_jax.parallel import processes
from igpo_jax.training import console, journal
from igpo_jax.training.files import write_whole
from igpo_jax.training.run_folder import check_folder
from igpo_jax.training.run_settings import RunSettings

CONFIG, ENVIRONMENT, HISTORY, STARTED = "config.json", "environment.json", "history.jsonl", "started.json"

#: Settings that change no number of a step: what is logged, kept and shown, and where things lie.
_FREE = (
    *("sft.log_every", "rl.save_rollouts_every", "rl.hint_gap_every", "evaluation.every", "data.path", "data.cache"),
    *(
        "judge.workers",
        "judge.memory_mb",
        "checkpoints.",
        "health.",
        "tracker.",
        "cpu_devices",
        "nonfinite_limit",
        "warm_up",
    ),
)
#: Settings of how the work is laid out, which change sums in their last bits alone.
_LAYOUT = (
    *("mesh.", "compute.remat", "sft.micro_batches", "sft.logprob_chunk"),
    *("rl.micro_batches", "rl.score_batches", "rl.logprob_chunk"),
    *("rl.rollout.rows_per_program", "evaluation.rows_per_program"),
)


#: Settings that the shapes in a checkpoint follow from: in those of every stage, and of one alone ("" is RL's).
_MODEL = [f"model.{name}" for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size")]
_SHAPES = {"sft": ("sft.lora.rank", "sft.lora.targets"), "": ("rl.lora.rank", "rl.lora.targets")}


@dataclasses.dataclass(frozen=True)
class Resuming:
    """What a start in the directory of an earlier run may take otherwise than that run had it."""

    other_devices: bool = False  # --allow-other-devices: devices, and how the work is laid out on them
    with_changes: bool = False  # --resume-with-changes: settings and data


#: Nothing.
AS_BEFORE = Resuming()


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that is not as the earlier run had it."""

    what: str
    before: Any
    now: Any
    is_device: bool = False
    is_layout: bool = False

    def __str__(self) -> str:
        return f"{self.what} {_show(self.before)} -> {_show(self.now)}"

    def taken(self, resuming: Resuming) -> bool:
        """Whether the flags give leave for it."""
        if self.is_device:
            return resuming.other_devices
        return resuming.with_changes or (self.is_layout and resuming.other_devices)


def first_start(workdir: pathlib.Path) -> float:
    """When the run in ``workdir`` was first started, in seconds since 1970; it is noted there the first time."""
    path = workdir / STARTED
    known = _read(path)
    if known is None:
        known = {"time": round(time.time(), 3)}
        write_whole(path, json.dumps(known) + "\n")
    return float(known["time"])


def check_shared(workdir: pathlib.Path) -> None:
    """Raises UserError where the processes of a run do not all see the same run directory."""
    probe = workdir / f".shared_{processes.from_main(lambda: secrets.token_hex(8))}"
    if processes.is_main():
        probe.touch()
    processes.wait_for_all()
    missing = processes.agree_sum(np.int64(not probe.exists()))
    if processes.is_main():
        probe.unlink()
    if missing:
        raise UserError(
            f"--workdir={workdir} is another folder on {missing} of the {jax.process_count()} processes; "
            "use one that all of them share, such as a network file system"
        )


def check_settings(settings: RunSettings, workdir: pathlib.Path, resuming: Resuming) -> list[Change]:
    """Compares ``settings`` with those that the directory's run has.

    Args:
      settings: what this start asks for.
      workdir: the run directory, new or old.
      resuming: what may differ.

    Returns:
      The differences that are taken; those that change no number are not among them.

    Raises:
      UserError: there are others, or some that no checkpoint would fit; the stored settings cannot be read; or the
        folder holds something else than a run.
    """
    check_folder(workdir)
    stored = _read(workdir / CONFIG)
    if stored is None:
        return []
    # A setting that is newer than the run had its default.
    defaults = _flat(json.loads(settings_lib.to_json(RunSettings())))
    changes = []
    for path, before, now in settings_lib.changed_fields(stored, settings):
        before = defaults.get(path, before) if before == settings_lib.ABSENT else before
        # The schedule of checkpoints decides which rollouts are sampled ahead.
        free = path.startswith(_FREE) and not (settings.rl.stale_steps and path == "checkpoints.every")
        if now == settings_lib.ABSENT or before == now or free:
            continue
        if path == "sft.steps" and settings.sft.epochs:
            continue  # they follow from the epochs and the rows, which are compared themselves
        changes.append(Change(path, before, now, is_layout=path.startswith(_LAYOUT)))
    _check_possible(changes, settings, workdir)
    # SFT that RL has started from is not made longer: the reference would be another one halfway through.
    if any(change.what == "sft.steps" for change in changes) and _saved_steps(workdir, settings.name):
        raise UserError(
            f"{workdir} holds a run whose RL stage began at the end of SFT, which cannot be made longer or shorter "
            f"now: {_listing(changes, 'sft.steps')}; keep sft.steps, or use another --workdir"
        )
    _refuse([change for change in changes if not change.taken(resuming)], workdir)
    return changes


def _check_possible(changes: list[Change], settings: RunSettings, workdir: pathlib.Path) -> None:
    """Raises UserError for changes that the checkpoints rule out, before the run directory takes anything."""
    made = {stage: max(_saved_steps(workdir, stage), default=0) for stage in ("sft", settings.name)}
    sft_steps = 0 if settings.sft.epochs else settings.sft.steps  # of epochs, not known yet
    for stage, section, asked in (("sft", "sft", sft_steps), (settings.name, "rl", settings.rl.steps)):
        if 0 < asked < made[stage]:
            raise UserError(
                f"{workdir} holds a run that has made {made[stage]} steps of {stage}, but {section}.steps is {asked}; "
                f"ask for {made[stage]} or more, or use another --workdir"
            )
    fixed = [field for stage, fields in _SHAPES.items() if made.get(stage, made[settings.name]) for field in fields]
    fixed += _MODEL if any(made.values()) else []
    ruled_out = [change for change in changes if change.what in fixed]
    if ruled_out:
        raise UserError(
            f"{workdir} holds checkpoints that fit no other {_listing(ruled_out)}; keep what the run has, or use "
            "another --workdir"
        )


def check_environment(facts: Mapping[str, Any], workdir: pathlib.Path, resuming: Resuming) -> list[Change]:
    """Compares the devices and the data with those that the directory's run has; as ``check_settings``.

    Args:
      facts: what ``environment`` returns.
      workdir: the run directory, new or old.
      resuming: what may differ.
    """
    stored = _read(workdir / ENVIRONMENT) or {}
    changes = [
        Change(f"{name} of the run", stored[name], facts[name], is_device=True)
        for name in ("devices", "device_kind", "processes")
        if name in stored and stored[name] != facts[name]
    ]
    known = stored.get("data", {})
    for split, digest in facts["data"].items():
        if known.get(split, digest) != digest:
            changes.append(Change(f"rows of the split '{split}'", known[split], digest))
    _refuse([change for change in changes if not change.taken(resuming)], workdir)
    if stored.get("jax", facts["jax"]) != facts["jax"]:
        console.note(f"made with jax {stored['jax']} so far, now {facts['jax']}: the run differs in its last bits")
    return changes


def environment(mesh: jax.sharding.Mesh, template_hash: str, encoded: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's numbers depend on besides its settings, as environment.json holds it.

    Args:
      mesh: the devices.
      template_hash: of the prompt template.
      encoded: the rows of every split as arrays (``data.pipeline.Encoded``).
    """
    return {
        "devices": jax.device_count(),
        "device_kind": mesh.devices.flat[0].device_kind,
        "processes": jax.process_count(),
        "platform": mesh.devices.flat[0].platform,
        "jax": jax.__version__,
        "template_hash": template_hash,
        "data": {split: _digest(rows) for split, rows in encoded.items()},
    }


def take(changes: list[Change], workdir: pathlib.Path, stages: tuple[str, ...]) -> None:
    """Says which changes are taken and appends them to history.jsonl, with the steps that were made before them.

    The journals go: the steps that are made again are other ones, perhaps judged by another judge.
    """
    if not changes:
        return
    shutil.rmtree(workdir / journal.FOLDER, ignore_errors=True)
    if any(change.is_device for change in changes):
        console.note("other devices than before: from here on the run is not the same to the bit")
    console.note("taken otherwise than before: " + "; ".join(str(change) for change in changes))
    row = {
        "time": round(time.time(), 3),
        "after": {stage: max(_saved_steps(workdir, stage), default=0) for stage in stages},
        "changes": {change.what: [change.before, change.now] for change in changes},
    }
    with (workdir / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _refuse(changes: list[Change], workdir: pathlib.Path) -> None:
    """Raises UserError for changes that no flag gives leave for."""
    if not changes:
        return
    flags = ["--allow-other-devices" for change in changes if change.is_device]
    flags += ["--resume-with-changes" for change in changes if not change.is_device]
    raise UserError(
        f"{workdir} holds a run with other settings: {_listing(changes)}; use another --workdir, go on with what the "
        f"run has, or take the changes with {' '.join(dict.fromkeys(flags))}"
    )


def _listing(changes: list[Change], what: str = "") -> str:
    return "; ".join(str(change) for change in changes if what in ("", change.what))


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """A JSON object of the run directory, None where there is none."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it, or use another --workdir") from error
    if not isinstance(found, dict):
        raise UserError(
            f"{path} holds {type(found).__name__}, expected the object that a run stores there; restore it, or use "
            "another --workdir"
        )
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _saved_steps(workdir: pathlib.Path, stage: str) -> list[int]:
    return [int(path.name) for path in (workdir / "checkpoints" / stage).glob("*") if path.name.isdigit()]


def _digest(rows: Any) -> str:
    """12 hex digits of a split's tokens, in their order."""
    digest = hashlib.sha256()
    for array in (rows.prompt_tokens, rows.completion_tokens):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]
