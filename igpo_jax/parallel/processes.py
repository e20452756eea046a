"""Several processes as one program: how they find each other, which rows are whose, and how they agree.

Everything here is free on one process. On several, every call that agrees or gathers is a collective: all processes
make the same calls in the same order, and whatever they decide from the result they decide alike, so that no process
waits for a program that another one never launches.
"""

import contextlib
import importlib.util
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from igpo_jax.errors import UserError
from igpo_jax.parallel import watchdog

#: Seconds without a sign of life after which a process counts as lost.
HEARTBEAT_SECONDS = 60
#: Seconds that the processes wait for each other at the start.
START_SECONDS = 300
#: Exit code of a process whose others did not come in time: it can be started again (EX_TEMPFAIL, as after SIGTERM).
TRY_AGAIN = 75
#: Environment variables that stand for the flags of the same meaning.
VARIABLES = {"coordinator": "IGPO_COORDINATOR", "processes": "IGPO_PROCESSES", "process-id": "IGPO_PROCESS_ID"}


def initialize(coordinator: str = "", processes: int = 0, process_id: int = -1) -> int:
    """Joins the other processes of the run; call it before anything starts the jax backend.

    With an address, all three arguments are needed. Without, TPU pods and ``srun`` are recognised by themselves, and
    anywhere else the run has one process and nothing happens. Where the others do not come within ``START_SECONDS`` the
    process ends, with exit code ``TRY_AGAIN``.

    Args:
      coordinator: ``HOST:PORT`` of process 0, the same on every process.
      processes: how many there are; 0 where ``coordinator`` is empty.
      process_id: number of this one, from 0; -1 where ``coordinator`` is empty.

    Returns:
      How many processes there are; on a TPU pod, where only the backend knows it, 1.

    Raises:
      UserError: the three do not fit each other, or jax refuses them.
    """
    coordinator, processes, process_id = _from_environment(coordinator, processes, process_id)
    _check(coordinator, processes, process_id)
    if coordinator and processes > 1:
        _join(coordinator_address=coordinator, num_processes=processes, process_id=process_id)
    elif not coordinator and _on_slurm():
        _join()
        return int(os.environ["SLURM_STEP_NUM_TASKS"])
    elif not coordinator and _on_tpu_pod():
        _join()
    elif not coordinator and _has_tpu_chips():
        # Cloud TPU's metadata server knows whether there are other hosts, and jax asks it; without one there are none.
        with contextlib.suppress(ValueError):
            _meet()
    return max(1, processes)


def _from_environment(coordinator: str, processes: int, process_id: int) -> tuple[str, int, int]:
    """The three values, those that were not given taken from the environment."""
    coordinator = coordinator or os.environ.get(VARIABLES["coordinator"], "")
    numbers = []
    for name, value, absent in (("processes", processes, 0), ("process-id", process_id, -1)):
        text = os.environ.get(VARIABLES[name], "") if value == absent else ""
        try:
            numbers.append(int(text) if text else value)
        except ValueError:
            raise UserError(f"{VARIABLES[name]} is '{text}', expected a whole number; correct it or unset it") from None
    return coordinator, numbers[0], numbers[1]


def _check(coordinator: str, processes: int, process_id: int) -> None:
    """Raises UserError where address, count and number do not make one whole."""
    if not coordinator:
        if processes > 1 or process_id > 0:
            raise UserError(
                f"--processes={processes} --process-id={process_id} has no address; add --coordinator=HOST:PORT of "
                "process 0, or leave all three away on TPU pods and under srun"
            )
        return
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UserError(f"--coordinator is '{coordinator}', expected HOST:PORT of process 0, as in 10.0.0.2:8476")
    if processes < 1 or not 0 <= process_id < processes:
        raise UserError(
            f"--coordinator comes with --processes={processes} --process-id={process_id}, expected a count of at least "
            "1 and a number from 0 to count - 1; give every process its own"
        )


def _on_slurm() -> bool:
    """Whether srun started this process as one of several."""
    count = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    return "SLURM_PROCID" in os.environ and count.isdigit() and int(count) > 1


def _on_tpu_pod() -> bool:
    """Whether the environment names other hosts of a TPU slice, or other slices."""
    return "MEGASCALE_COORDINATOR_ADDRESS" in os.environ or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def _has_tpu_chips() -> bool:
    """Whether this machine has TPU chips, and jax is free to use them."""
    wanted = "tpu" in (os.environ.get("JAX_PLATFORMS") or "tpu") and importlib.util.find_spec("libtpu") is not None
    return wanted and (os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0"))


def _join(**who: Any) -> None:
    """Meets the others; what jax says against it becomes one sentence."""
    try:
        _meet(**who)
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        where = who.get("coordinator_address", "the cluster's coordinator")
        raise UserError(
            f"the processes could not join at {where} ({str(error).splitlines()[0][:200]}); check that all of them "
            "run, with the same address and count and each with a number of its own"
        ) from error


def _meet(**who: Any) -> None:
    """Starts ``jax.distributed``, and ends the process with one sentence where the others do not come in time.

    jax would not raise an error then, but abort with a stack trace, so its own time is a minute longer.
    """
    timer = threading.Timer(START_SECONDS, _give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **who, initialization_timeout=START_SECONDS + 60, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    finally:
        timer.cancel()


def _give_up() -> None:
    print(
        f"error: the other processes did not come within {START_SECONDS} seconds; start all of them again with the "
        "same command, each with the same address and count and a number of its own",
        file=sys.stderr,
        flush=True,
    )
    os._exit(TRY_AGAIN)


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return jax.process_index() == 0


def my_rows(count: int) -> slice:
    """The rows of ``count`` that this process samples, judges and passes to the devices.

    Raises:
      UserError: ``count`` does not divide over the processes.
    """
    processes = jax.process_count()
    if count % processes:
        raise UserError(
            f"{count} rows do not divide over {processes} processes; make the number a multiple of {processes}"
        )
    share = count // processes
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def gather(array: Any) -> np.ndarray:
    """One array per process, of one shape and dtype on all of them, stacked: (processes, ...), on every process."""
    array = np.asarray(array)
    if jax.process_count() == 1:
        return array[None]
    # As bytes: the devices would cut 64-bit numbers to 32.
    raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    everyone = np.ascontiguousarray(multihost_utils.process_allgather(raw))
    return everyone.view(array.dtype).reshape(jax.process_count(), *array.shape)


def gather_rows(array: Any) -> np.ndarray:
    """The rows of all processes, in process order; every process passes as many."""
    everyone = gather(array)
    return everyone.reshape(-1, *everyone.shape[2:])


def gather_values(value: Any) -> list[Any]:
    """One JSON value per process, in process order, on every process; sizes may differ."""
    if jax.process_count() == 1:
        return [value]
    raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = gather(np.int64(raw.size))
    # A power of two, so that few programs are ever compiled.
    room = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    room[: raw.size] = raw
    return [json.loads(row[:size].tobytes()) for row, size in zip(gather(room), sizes, strict=True)]


def from_main(value: Callable[[], Any]) -> Any:
    """What ``value()``, called on the main process alone, gives: a JSON value, on every process."""
    return gather_values(value() if is_main() else None)[0]


def agree_any(flag: bool) -> bool:
    """True on all processes if ``flag`` is on any of them."""
    return bool(flag) if jax.process_count() == 1 else bool(gather(np.bool_(flag)).any())


def agree_sum(array: Any) -> np.ndarray:
    """The sum over the processes, in process order, of an array of one shape and dtype."""
    return gather(array).sum(axis=0)


def agree_max(value: int) -> int:
    """The largest ``value`` of any process."""
    return int(gather(np.int64(value)).max())


def broadcast(tree: Any) -> Any:
    """The main process's numpy arrays, of the same shapes and dtypes on all processes."""
    return jax.tree.map(lambda leaf: gather(leaf)[0], tree)


def wait_for_all() -> None:
    """Returns when every process has come here."""
    agree_any(False)


@contextlib.contextmanager
def together(coordinator: str = "") -> Iterator[None]:
    """The block that all processes run: what one of them fails by, or its loss, ends all, each with one sentence.

    The others' standard output is closed inside the block, so that a run speaks once. On one process nothing happens.

    Args:
      coordinator: ``HOST:PORT`` where one was given; its host is the first to look for the main process.
    """
    if jax.process_count() == 1:
        yield
        return
    listener: socket.socket | None = None
    address: dict[str, Any] = {}
    if is_main():
        listener, address = watchdog.advertise(coordinator.rpartition(":")[0])
    watch = watchdog.Watch(jax.process_index(), jax.process_count(), listener, from_main(lambda: address))
    try:
        with contextlib.ExitStack() as stack:
            if not is_main():
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield
    except UserError as error:
        watch.fail(str(error), 2)
    except KeyboardInterrupt:
        watch.fail("stopped by Ctrl-C; the last finished checkpoint is intact", 130)
    except jax.errors.JaxRuntimeError as error:
        time.sleep(watchdog.GRACE)  # the watch may know who was lost, and then does not return from this
        watch.fail(
            f"a common program failed ({str(error).splitlines()[0][:200]}), probably as another process ended", 1
        )
    except Exception as error:
        traceback.print_exc()
        watch.fail(f"{type(error).__name__}: {str(error)[:200]}", 1)
    watch.bye()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Runs the block on the main process and then on the others, which find the files that it wrote.

    Raises:
      UserError: on the others, where the block failed on the main process.
    """
    if jax.process_count() == 1:
        yield
        return
    if not is_main() and agree_any(False):
        raise UserError("the main process (number 0) failed; its message says why")
    try:
        yield
    except BaseException:
        if is_main():
            agree_any(True)
        raise
    if is_main():
        agree_any(False)
