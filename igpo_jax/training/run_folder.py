"""Whether a folder is a run's, so that training writes over nobody else's files."""

import fnmatch
import json
import pathlib

from igpo_jax.errors import UserError

#: What tells a run's folder; of what a run writes, only built data and an empty metrics.jsonl come before the first.
_MARKS = ("started.json", "config.json")
#: Sections that every config.json of a run has had.
_SECTIONS = {"sampler", "sft", "rl"}
#: What may lie in a folder before its run begins: built data and its report, logs of the job, a mounted disk's own.
_HARMLESS = (".*", "data", "data_report.*", "data_lengths.png", "lost+found", "*.log", "*.out", "*.err")
_SHOWN = 3


def check_folder(workdir: pathlib.Path) -> None:
    """Raises UserError where a folder holds files, but no run.

    Args:
      workdir: the run directory, which may be absent.
    """
    if any(_is_mark(workdir / name) for name in _MARKS):
        return
    strangers = sorted(path.name for path in workdir.glob("*") if not _harmless(path))
    if not strangers:
        return
    more = f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else ""
    raise UserError(
        f"--workdir={workdir} is not the folder of a run, but holds {', '.join(strangers[:_SHOWN])}{more}; name a new "
        "or an empty folder, or that of the run to go on with"
    )


def _harmless(path: pathlib.Path) -> bool:
    """Also an empty metrics.jsonl, which a start that was killed at once may have left."""
    if path.name == "metrics.jsonl" and path.is_file() and not path.stat().st_size:
        return True
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in _HARMLESS)


def _is_mark(path: pathlib.Path) -> bool:
    """Whether a file is a run's. A run's config that is damaged is told by started.json beside it."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return path.name == _MARKS[0] and path.exists()
    return isinstance(found, dict) and (path.name == _MARKS[0] or found.keys() >= _SECTIONS)
