"""Where a run's time goes: seconds by phase, throughput, utilisation of the devices, and goodput across restarts."""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax

from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.models import flops
from igpo_jax.models.config import ModelConfig
from igpo_jax.models.lora import LoraSettings
from igpo_jax.parallel import clock, devices
from igpo_jax.rl.sampling import SamplingCost
from igpo_jax.training import console
from igpo_jax.training.metrics import Row

#: Phases of a step, in the order in which the tables show them. "judge" runs beside the sampling; the part of it that
#: the step had to wait for is "judge_wait", which "rollout" and "inpaint" contain.
PHASES = {
    "rollout": "sampling, plain round",
    "inpaint": "sampling, second round",
    "score": "scoring",
    "update": "updates",
    "data": "data",
    "checkpoint": "checkpoints",
    "evaluate": "evaluation",
    "compile": "compiling",
}
#: Seconds that pass within those above.
BESIDE = {"judge": "judging (beside the sampling)", "judge_wait": "waiting for the judge (in the sampling)"}
#: What moves the run forward; the rest is overhead.
_PRODUCTIVE = ("rollout", "inpaint", "score", "update", "evaluate")


@dataclasses.dataclass(frozen=True)
class Work:
    """Model FLOPs of a stage's two kinds of work, as the formulas of models/flops.py count them."""

    row_forward: float  # one denoising forward of one row
    row_update: float  # one forward and backward pass of one row

    @classmethod
    def of(cls, config: ModelConfig, sampler: Sampler, prompt_length: int, lora: LoraSettings) -> "Work":
        """The work of a stage: rows of prompt and canvas; the head on a block when sampling, else on the canvas."""
        length = prompt_length + sampler.length
        passes = 2 if sampler.cfg_scale else 1
        return cls(
            passes * flops.forward_flops(config, 1, length, sampler.block_length, lora),
            flops.update_flops(config, 1, length, sampler.length, lora),
        )


class Accounts(clock.Phases):
    """Counts a stage's seconds and work between two rows of metrics.

    Args:
      work: FLOPs of a row.
      canvas: tokens that one sampled sequence has.
      mesh: the devices that share the work.
      productive: productive seconds of the run so far, for goodput.
      first_start: when the run was first started, in seconds since 1970.
    """

    def __init__(
        self, work: Work, canvas: int, mesh: jax.sharding.Mesh, productive: float = 0.0, first_start: float = 0.0
    ):
        super().__init__()
        self._productive, self._first_start = productive, first_start
        device = devices.device_of(mesh.devices.flat[0].device_kind)
        self._work, self._canvas, self._devices = work, canvas, mesh.devices.size
        self._peak = device.peak_bf16_flops if device else None
        self._cost = SamplingCost()
        self._updated_rows, self._updated_tokens, self._updated_flops = 0, 0, 0.0

    def sampled(self, seconds: Mapping[str, float], cost: SamplingCost) -> None:
        """Counts a rollout: its seconds by phase, and what all processes together sampled."""
        for name, spent in seconds.items():
            self.add(name, spent)
        self._cost = self._cost + cost

    def updated(self, rows: int, canvas: int = 0, row_update: float = 0.0) -> None:
        """Counts an update on ``rows`` rows, with ``canvas`` tokens and ``row_update`` FLOPs where not the stage's."""
        self._updated_rows += rows
        self._updated_tokens += rows * (canvas or self._canvas)
        self._updated_flops += rows * (row_update or self._work.row_update)

    def row(self) -> dict[str, float]:
        """What a row of metrics says, since the row before: seconds, rates per device, utilisation; starts anew.

        "goodput" is the run's up to here: productive seconds over wall seconds since its first start, pauses included.
        """
        values = {f"{name}_seconds": spent for name, spent in self.seconds.items()} | self._rates()
        self._productive += _productive_of(self.seconds)
        values["goodput"] = self._productive / max(time.time() - self._first_start, 1e-9)
        self.seconds, self._cost = {}, SamplingCost()
        self._updated_rows, self._updated_tokens, self._updated_flops = 0, 0, 0.0
        return values

    def _rates(self) -> dict[str, float]:
        sampling = self.seconds.get("rollout", 0.0) + self.seconds.get("inpaint", 0.0)
        updating = self.seconds.get("update", 0.0)
        values = {}
        if sampling and self._cost.rows:
            share = 1 / (sampling * self._devices)
            values = {
                "rollout_sequences_per_second": self._cost.rows * share,
                "rollout_tokens_per_second": self._cost.rows * self._canvas * share,
                "rollout_forwards_per_second": self._cost.row_forwards_paid * share,
            }
            if self._peak:
                values["mfu_rollout"] = self._cost.row_forwards_paid * self._work.row_forward * share / self._peak
        if updating and self._updated_rows:
            share = 1 / (updating * self._devices)
            values["update_sequences_per_second"] = self._updated_rows * share
            values["update_tokens_per_second"] = self._updated_tokens * share
            if self._peak:
                values["mfu_update"] = self._updated_flops * share / self._peak
        return values


def note_unknown_device(mesh: jax.sharding.Mesh) -> None:
    """Says on the console that utilisation is not shown, where the device's peak is not known."""
    kind = mesh.devices.flat[0].device_kind
    if devices.device_of(kind) is None:
        console.note(f"unknown device '{kind}': its peak is not in the table, so MFU is not shown")


def seconds_by_phase(rows: Sequence[Row], stage: str) -> dict[str, float]:
    """Seconds of each phase over the rows of a stage, those of earlier starts of the run included."""
    total: dict[str, float] = {}
    for row in rows:
        for name in (*PHASES, *BESIDE):
            if row.stage == stage and f"{name}_seconds" in row.values:
                total[name] = total.get(name, 0.0) + row.values[f"{name}_seconds"]
    return total


def productive_seconds(rows: Sequence[Row]) -> float:
    """Seconds of the steps that the run stands on: sampling, scoring, updates, evaluation.

    Steps that a restart made again have left the rows and count once.
    """
    return sum(_productive_of(seconds_by_phase(rows, stage)) for stage in {row.stage for row in rows})


def _productive_of(seconds: Mapping[str, float]) -> float:
    return sum(seconds.get(name, 0.0) for name in _PRODUCTIVE)


def goodput_line(rows: Sequence[Row]) -> str:
    """One line on the last row's goodput; empty where no row has one."""
    shares = [row.values["goodput"] for row in rows if "goodput" in row.values]
    if not shares:
        return ""
    return f"goodput {100 * shares[-1]:.0f}%: the steps' share of all time since the first start"


def table(rows: Sequence[Row], stages: Sequence[str]) -> str:
    """Seconds by phase, one column a stage; empty where no row has any."""
    columns = {stage: spent for stage in stages if (spent := seconds_by_phase(rows, stage))}
    named = {**PHASES, **BESIDE}
    lines = [
        (title, *(_cell(spent.get(name)) for spent in columns.values()))
        for name, title in named.items()
        if any(spent.get(name) for spent in columns.values())
    ]
    return console.table(lines, ("time in", *columns)) if lines else ""


def _cell(seconds: float | None) -> str:
    return console.format_duration(seconds) if seconds else ""
