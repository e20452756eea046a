"""A plan as text: memory by kind, traffic, roofline, and what to change where something does not fit."""

from collections.abc import Mapping, Sequence
from typing import Any

from igpo_jax.training.run_settings import RunSettings

_MEMORY = ("arguments", "temporaries", "outputs", "donated", "beside")

Row = Sequence[str]


def render(plan: Mapping[str, Any]) -> str:
    """The table of a plan, as ``record.to_json`` stores it."""
    compilers = ", ".join(f"{name} {version}" for name, version in plan["versions"].items())
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    head = [
        f"{plan['config'] or 'config'} on {plan['topology']}: {plan['devices']} x {plan['device_kind']}, mesh {mesh}",
        f"{_count(plan['parameters'])} parameters, {plan['attention']} attention; {compilers}",
        "",
    ]
    programs = plan["programs"]
    parts = [*head, table(_memory_rows(programs, plan["hbm_gib"])), ""]
    parts += [table(_speed_rows(programs)), "", table(_traffic_rows(programs)), "", _closing(plan)]
    return "\n".join(parts)


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.3f}B" if parameters >= 1e8 else f"{parameters / 1e6:.3f}M"


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned columns, the first one to the left; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _memory_rows(programs: Sequence[Mapping[str, Any]], hbm: float) -> list[Row]:
    """GiB on one device by kind."""
    rows: list[Row] = [("GiB per device", *_MEMORY, "peak", f"of {hbm:g}", "headroom")]
    for program in programs:
        memory = program["memory"]
        kinds = [f"{memory[kind]:.2f}" for kind in _MEMORY] if memory else ["-"] * len(_MEMORY)
        needed = program["needed"]
        peak = "-" if needed is None else f"{needed:.2f}"
        left = "-" if needed is None else f"{program['headroom']:+.2f}"
        rows.append((program["name"], *kinds, peak, "fits" if program["fits"] else "DOES NOT FIT", left))
    return rows


def _speed_rows(programs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The roofline: seconds of one execution by what limits it."""
    rows: list[Row] = [
        ("roofline, seconds", "runs", "rows", "model PFLOP", "compute", "memory", "links", "estimate", "MFU ceiling")
    ]
    for program in programs:
        links = program["traffic"]["seconds"] if program["traffic"] else None
        rows.append(
            (
                program["name"],
                f"{program['runs']:g}",
                str(program["rows"]),
                f"{program['flops'] / 1e15:.3g}",
                seconds(program["compute_seconds"]),
                seconds(program["memory_seconds"]),
                "-" if links is None else seconds(links),
                f"{seconds(program['seconds'])} ({program['bound']})",
                f"{100 * program['mfu_ceiling']:.0f}%",
            )
        )
    return rows


def _traffic_rows(programs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """GiB that one device takes in, by kind of collective, in one execution."""
    kinds = [kind for program in programs if program["traffic"] for kind in program["traffic"]["by_kind"]]
    kinds = list(dict.fromkeys(kinds)) or ["collectives"]
    rows: list[Row] = [("GiB received per device", *kinds, "most for")]
    for program in programs:
        traffic = program["traffic"]
        if traffic is None:
            rows.append((program["name"], *["unknown"] * len(kinds), "-"))
            continue
        cells = [_gib(traffic["by_kind"].get(kind, 0.0)) for kind in kinds]
        costly = traffic["largest"]
        most = f"{costly[0][0]} {costly[0][1]} x {costly[0][2]:g}" if costly else "-"
        rows.append((program["name"], *cells, most))
    return rows


def _gib(size: float) -> str:
    return "0" if not size else f"{size / 2**30:.2g}" if size < 0.995 * 2**30 else f"{size / 2**30:,.1f}"


def seconds(value: float) -> str:
    """Three digits of a time."""
    return f"{value:.3g}"


def _closing(plan: Mapping[str, Any]) -> str:
    """The verdict, with the change to try first where there is no place."""
    lines = []
    names = [program["name"] for program in plan["programs"]]
    what = "one outer step (a second round comes on top)" if "update" in names else f"one {names[0]}"
    took = seconds(plan["step_seconds"])
    lines.append(f"Roofline of {what}: {took} s, if computing, memory and links overlap without a gap.")
    if plan["fits"]:
        tightest = min(plan["programs"], key=lambda program: program["headroom"])
        lines.append(f"It fits: {tightest['name']} has the least headroom, {tightest['headroom']:.2f} GiB.")
    else:
        short = [program["name"] for program in plan["programs"] if not program["fits"]]
        lines.append(f"It does not fit ({', '.join(short)}). First change to try: {plan['advice']}")
    return "\n".join(lines)


def advice(settings: RunSettings, short: Sequence[str], shards: int) -> str:
    """The cheapest change that makes room: fewer rows at a time and remat change no result, adapters do.

    Args:
      settings: the configuration that does not fit.
      short: names of the programs without place.
      shards: devices over which a batch is split.
    """
    updates = [name for name in ("sft update", "update") if name in short]
    if updates and settings.compute.remat != "full":
        return "--config.compute.remat=full, which keeps less of each layer for the backward pass"
    for name in (*updates, *(name for name in ("scoring", "rollout") if name in short)):
        if fewer := _fewer_rows(settings, name, shards):
            return fewer
    stage = "sft" if "sft update" in short else "rl"
    if getattr(settings, stage).steps and not getattr(settings, stage).lora.rank:
        return f"--config.{stage}.lora.rank=128: adapters in the place of a float32 master copy and two moments"
    return "a larger slice: every array but the activations is divided over its devices"


def _fewer_rows(settings: RunSettings, name: str, shards: int) -> str:
    """The change that gives a program about half as many rows at a time, empty where a device has but one."""
    if name == "rollout":
        section = "rl.rollout" if settings.rl.steps else "evaluation"
        rows = settings.rl.rollout.rows_per_program if settings.rl.steps else settings.evaluation.rows_per_program
        half = max(shards, rows // 2 // shards * shards)
        return f"--config.{section}.rows_per_program={half}" if rows > shards else ""
    field, rows, parts = {
        "sft update": ("sft.micro_batches", settings.sft.batch_size, settings.sft.micro_batches),
        "update": ("rl.micro_batches", settings.rl.rollout.rows, settings.rl.micro_batches),
        "scoring": ("rl.score_batches", settings.rl.rollout.rows, settings.rl.score_batches),
    }[name]
    if rows % (2 * parts) or rows // (2 * parts) < shards:
        return ""
    return f"--config.{field}={2 * parts}, half as many rows at a time ({rows // parts // shards} a device now)"
