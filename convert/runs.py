"""The parameters in a run directory of ``igpo_jax.train``: full ones, or adapters on what the run began from.

Only the files are read, not the classes that wrote them: config.json (the run's settings), model_config.json, and one
Orbax checkpoint of flat paths in checkpoints/STAGE/STEP/state.
"""

import contextlib
import functools
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from convert import arrays
from convert.checkpoint_files import read_json
from convert.parameters import MergedParameters, Parameters, StoredParameters, TreeParameters, check
from igpo_jax import settings as settings_lib
from igpo_jax.errors import UserError
from igpo_jax.models import lora
from igpo_jax.models.config import ModelConfig
from igpo_jax.models.params import Params, abstract, init, shardings

T = TypeVar("T")

_log = logging.getLogger(__name__)

Path = str | os.PathLike[str]

#: Opens the checkpoint that a run began from.
Start = Callable[[Path, Mesh | None], Params]


def is_run_dir(folder: pathlib.Path) -> bool:
    """Whether a folder was written by ``igpo_jax.train``."""
    return (folder / "model_config.json").is_file() and (folder / "checkpoints").is_dir()


def load(path: Path, mesh: Mesh | None, start: Start) -> tuple[ModelConfig, Params]:
    """The parameters of a run's newest stage, adapters merged, in the dtype that training keeps (float32).

    Args:
      path: the run directory.
      mesh: where the parameters go; by default whole on the first device.
      start: opens the checkpoint that the run's ``model.checkpoint`` names, where adapters need it.

    Raises:
      UserError: no stage has a checkpoint, or none can be read.
    """
    run = Run(path)
    return run.config, run.params(run.newest_stage(), mesh, start)


class Run:
    """A run directory, read only.

    Attributes:
      folder: the run directory.
      config: configuration of the model.
      stages: names of the stages, in the order of training.

    Raises:
      UserError: its JSON files are missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = pathlib.Path(folder)
        path = self.folder / "model_config.json"
        self.config = ModelConfig.from_hf(read_json(path), str(path))
        self._settings = read_json(self.folder / "config.json")
        self.stages = [name for name, steps in ((s, self._section(s).get("steps")) for s in self._names()) if steps]

    def _names(self) -> tuple[str, str]:
        return "sft", self._settings.get("name", "igpo")

    def _section(self, stage: str) -> dict[str, Any]:
        return self._settings.get("sft" if stage == "sft" else "rl", {})

    def lora_of(self, stage: str) -> lora.LoraSettings:
        """How ``stage`` was trained; rank 0 means full fine-tuning."""
        source = f"{self.folder / 'config.json'}: {stage}.lora"
        return settings_lib.from_config_dict(lora.LoraSettings, self._section(stage).get("lora", {}), source)

    def steps(self, stage: str) -> list[int]:
        """Steps of the finished checkpoints of a stage, in order."""
        folder = self.folder / "checkpoints" / stage
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(item.name) for item in found if item.name.isdigit() and (item / "state").is_dir())

    def newest_stage(self) -> str:
        """The last stage that has a checkpoint; a UserError where none has."""
        for stage in reversed(self.stages):
            if self.steps(stage):
                return stage
        raise UserError(
            f"{self.folder} has no finished checkpoint; let training reach its first save (checkpoints.every)"
        )

    def params(self, stage: str, mesh: Mesh | None, start: Start) -> Params:
        """Plain parameters after ``stage``, adapters merged."""
        if not self.lora_of(stage).rank:
            return self._restore(stage, abstract(self.config, jnp.float32, mesh))
        with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            return jax.jit(lora.merge)(self.before(stage, mesh, start), self.adapters(stage, mesh))

    def adapters(self, stage: str, mesh: Mesh | None = None) -> lora.Adapters:
        """The adapters that ``stage`` trained."""
        settings = self.lora_of(stage)
        make = functools.partial(lora.init_adapters, settings=settings, config=self.config)
        like: Any = jax.eval_shape(make, jax.random.key(0))
        if mesh is not None:
            places = lora.adapter_shardings(settings, self.config, mesh)
            like = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like, places)
        return self._restore(stage, like)

    def before(self, stage: str, mesh: Mesh | None, start: Start) -> Params:
        """Plain parameters that ``stage`` began from."""
        if self.stages.index(stage):
            return self.params(self.stages[self.stages.index(stage) - 1], mesh, start)
        if not self.start_checkpoint:
            return self._fresh(mesh)
        return self._begin(lambda: start(self.start_checkpoint, mesh))

    @property
    def start_checkpoint(self) -> str:
        """The checkpoint that the run began from, "" where it began from scratch."""
        return self._settings.get("model", {}).get("checkpoint", "")

    def _fresh(self, mesh: Mesh | None) -> Params:
        """What a run without a checkpoint began from, which its seed alone reproduces."""
        key = jax.random.fold_in(jax.random.key(self._settings["seed"]), 0)
        places = None if mesh is None else shardings(self.config, mesh)
        return jax.jit(init, static_argnums=(1, 2), out_shardings=places)(key, self.config, jnp.float32)

    def open(self, stage: str, start: Callable[[Path], Parameters]) -> Parameters:
        """The parameters after ``stage``, adapters merged, read piece by piece.

        Args:
          stage: one of ``stages``.
          start: opens the checkpoint that the run's ``model.checkpoint`` names, where adapters need it.
        """
        if self.lora_of(stage).rank:
            return MergedParameters(self._open_before(stage, start), self.adapters(stage))
        return self._newest(stage, self._open_state)

    def _open_state(self, state: pathlib.Path) -> Parameters:
        found = StoredParameters(state, "trainable/")
        check(found, self.config, str(state))
        return found

    def _open_before(self, stage: str, start: Callable[[Path], Parameters]) -> Parameters:
        if self.stages.index(stage):
            return self.open(self.stages[self.stages.index(stage) - 1], start)
        if not self.start_checkpoint:
            return TreeParameters(self._fresh(None))
        return self._begin(lambda: start(self.start_checkpoint))

    def _begin(self, start: Callable[[], T]) -> T:
        try:
            return start()
        except UserError as error:
            raise UserError(
                f"{self.folder} trained adapters on {self.start_checkpoint}, which is needed to merge them: {error}"
            ) from error

    def _restore(self, stage: str, like: Any) -> Any:
        """The stage's trained arrays."""
        wanted = {f"trainable/{path}": leaf for path, leaf in arrays.flatten(like).items()}

        def read(state: pathlib.Path) -> Any:
            arrays.check(arrays.stored(state), wanted, str(state), subset=True)
            values = arrays.restore(state, wanted, subset=True)
            return jax.tree.unflatten(jax.tree.structure(like), [values[path] for path in wanted])

        return self._newest(stage, read)

    def _newest(self, stage: str, read: Callable[[pathlib.Path], T]) -> T:
        """What ``read`` makes of a stage's newest readable checkpoint; unreadable ones are named in warnings."""
        folder, failures = self.folder / "checkpoints" / stage, []
        for step in reversed(self.steps(stage)):
            try:
                return read(folder / str(step) / "state")
            except UserError as error:
                failures.append(str(error))
                _log.warning("%s", error)
        found = f": {failures[0]}" if failures else ", but later adapters stand on it; copy the complete run directory"
        raise UserError(f"{folder} has no readable checkpoint{found}")
