"""The evaluate command behind its flags: checks from cheap to dear, then the loop, then the report."""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib

from igpo_jax import settings as settings_lib
from igpo_jax.commands import checkpoint as checkpoints
from igpo_jax.data import DataSettings
from igpo_jax.data.tokenizers import Tokenizer
from igpo_jax.errors import UserError
from igpo_jax.evaluation import identity, page, prompts, protocols, reports, running, suites
from igpo_jax.evaluation.store import PAGE, REPORT, Store, read_json, write_whole
from igpo_jax.parallel import processes
from igpo_jax.parallel.mesh import MeshSettings, make_mesh
from igpo_jax.rewards.pool import JudgePool, JudgeSettings
from igpo_jax.training import console


def evaluate(
    chosen: argparse.Namespace,
    names: list[str],
    places: dict[str, str],
    judges: dict[str, JudgePool],
    stack: contextlib.ExitStack,
) -> None:
    """Runs the whole evaluation.

    Args:
      chosen: the flags.
      names: suites, as ``suites.parse_names`` gives them.
      places: paths of ``--data``, by suite.
      judges: the pool for "math", running; those for puzzles are added.
      stack: closes what is opened here.

    Raises:
      UserError: bad input of any kind, named in one sentence; the output folder is then as it was.
    """
    store = Store(pathlib.Path(chosen.output))
    store.check_place()
    outline = checkpoints.read_outline(chosen.checkpoint)
    tokenizer = _tokenizer(outline)
    tasks = _tasks(chosen, names, places, outline, tokenizer)
    mesh = make_mesh(MeshSettings(data=-1, fsdp=chosen.fsdp, tensor=chosen.tensor))
    checkpoints.check_tensor(outline.config, chosen.tensor)
    _check_batch(chosen.batch, mesh.shape["data"] * mesh.shape["fsdp"])
    for kind in {task.suite.kind for task in tasks} - set(judges):
        # Puzzles are checked in this process; their pool only needs to exist.
        judges[kind] = stack.enter_context(JudgePool(JudgeSettings(workers=1, kind=kind)))
    policy, model = checkpoints.load_policy(outline, chosen.dtype, mesh)
    asked = reports.protocol(
        chosen.protocol,
        _changes(chosen).given(),
        {task.suite.name: task.to_json() for task in tasks},
        identity.checkpoint(outline.path.absolute(), outline.kind, policy.params),
        identity.judge(),
        seed=chosen.seed,
        batch=chosen.batch,
        dtype=model.compute.dtype,
        machine=identity.machine(mesh),
        versions=identity.versions(),
    )
    with processes.main_first():
        store.begin(asked)
    batches = list(prompts.batches(tasks, chosen.batch, outline.config))
    answering = running.Model(policy, model, tokenizer, mesh)
    running.run(batches, store, answering, judges, rows_per_program=chosen.batch, seed=chosen.seed)
    if processes.is_main():
        _finish(store, batches, asked)
    processes.wait_for_all()


def _tokenizer(outline: checkpoints.Outline) -> Tokenizer:
    if outline.tokenizer is None:
        raise UserError(
            f"{outline.path} has no tokenizer files, without which no question can be asked; put the tokenizer.json "
            "and tokenizer_config.json of the model there"
        )
    return outline.tokenizer


def _tasks(
    chosen: argparse.Namespace,
    names: list[str],
    places: dict[str, str],
    outline: checkpoints.Outline,
    tokenizer: Tokenizer,
) -> list[prompts.Task]:
    own = _own_data(outline) if suites.OWN in names else None
    asked = {name: protocols.protocol_of(chosen.protocol, name, _changes(chosen), outline.run) for name in names}
    cache = pathlib.Path(chosen.cache) if chosen.cache else cache_folder()
    return [
        prompts.make_task(
            suites.load(name, places.get(name, ""), cache, chosen.limit, own), asked[name], tokenizer, outline.config
        )
        for name in names
    ]


def _changes(chosen: argparse.Namespace) -> protocols.Changes:
    return protocols.Changes(
        **{field.name: getattr(chosen, field.name) for field in dataclasses.fields(protocols.Changes)}
    )


def cache_folder() -> pathlib.Path:
    """Where downloads and built data sets are kept between evaluations: $XDG_CACHE_HOME or ~/.cache."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "igpo_jax" / "data"


def _own_data(outline: checkpoints.Outline) -> DataSettings | None:
    """The data settings of a training run."""
    if outline.run is None:
        return None
    path = outline.path / "config.json"
    return settings_lib.from_config_dict(DataSettings, read_json(path).get("data", {}), f"{path}: data")


def _check_batch(batch: int, shards: int) -> None:
    if batch % shards:
        raise UserError(
            f"--batch is {batch}, which does not divide over {shards} devices (mesh axes data x fsdp); "
            f"give a multiple of {shards}"
        )


def _finish(store: Store, batches: list[prompts.Batch], asked: dict[str, object]) -> None:
    """Writes the page and the report, the report last: where it is, all is complete."""
    records = store.read()
    running.require_complete(batches, records)
    report = reports.report(asked, records)
    write_whole(store.folder / PAGE, page.render(report, records))
    write_whole(store.folder / REPORT, json.dumps(report, indent=2) + "\n")
    console.note(reports.table(report))
    console.note(f"report.json, samples.jsonl and samples.html are in {store.folder}")
