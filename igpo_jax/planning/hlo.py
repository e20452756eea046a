"""What a compiled program sends between devices, read from its text: collectives by kind, loops multiplied out."""

import dataclasses
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_END = re.compile(r"^\}(?:[,\s]|$)")
_LINE = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_SHAPE = re.compile(r"\b(?P<type>pred|[suf]\d+|bf16|c64|c128|f8\w+|s4|u4)\[(?P<sizes>[\d,]*)\]")
_OPCODE = re.compile(r"(?:^|[\s})\]])(?P<opcode>[a-z][a-z0-9\-]*)\(")
_CALLS = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TWO_BRANCHES = re.compile(r"\b(?:true_computation|false_computation)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHAINED = re.compile(r'channel_id=(\d+).*chain_id="')
_CONSTANT = re.compile(r"^[su]\d+\[\](?:\{[^}]*\})? constant\((-?\d+)\)")
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_MESH_GROUPS = re.compile(r"replica_groups=\s*@?mesh\[([^\]]*)\]\s*\{([^}]*)\}")

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Sent:
    """One collective instruction, with the loops around it."""

    kind: str  # one of COLLECTIVES
    bytes_in: float  # bytes that one device takes in, each time
    times: float  # executions in one run of the program
    group: int  # devices that take part together
    shape: str  # largest array of the instruction, as in "bf16[4096,126464]"
    name: str  # where it comes from: the instruction's op_name, or its own name
    chain: str = ""  # channel that all parts of a collective spread over several fusions have in common

    @property
    def total(self) -> float:
        """Bytes that one device takes in over the whole program."""
        return self.bytes_in * self.times


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    result: str  # text of the result's type
    rest: str  # everything after "="


def collectives(text: str, devices: int, unknown_trips: int = 1) -> list[Sent]:
    """Every collective of a compiled program.

    Args:
      text: the optimised HLO module.
      devices: devices of the program, for instructions that name no groups.
      unknown_trips: times that a loop runs whose end depends on data.
    """
    computations, entry = _computations(text)
    found = list(_walk(computations, entry, 1.0, devices, unknown_trips, set()))
    # TPUs spread one collective over the fusions that run meanwhile; each of them holds the whole instruction.
    first: dict[str, Sent] = {}
    return [one for one in found if not one.chain or first.setdefault(one.chain, one) is one]


def has_call(text: str, *targets: str) -> bool:
    """Whether the program calls one of the named kernels (custom_call_target)."""
    return any(f'custom_call_target="{target}"' in text for target in targets)


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Instructions of every computation, and the name of the entry computation."""
    found: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = found.setdefault(header["name"], [])
            entry = header["name"] if line.startswith("ENTRY") else entry
        elif _END.match(line):  # text inside an instruction may start a line with a bracket of its own
            current = None
        elif current is not None and (match := _LINE.match(line)):
            current.append(_instruction(match["name"], match["rest"]))
    return found, entry


def _instruction(name: str, rest: str) -> _Instruction:
    """Splits "TYPE opcode(operands), attributes"; a type may be a tuple in brackets."""
    end = _closing(rest) + 1 if rest.startswith("(") else 0
    match = _OPCODE.search(rest, end)
    opcode = match["opcode"] if match else ""
    return _Instruction(name, opcode, rest[: match.start("opcode")] if match else rest, rest)


def _closing(text: str) -> int:
    """Index of the bracket that closes the one at the start."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    return len(text)


def _walk(
    computations: dict[str, list[_Instruction]],
    name: str,
    times: float,
    devices: int,
    unknown_trips: int,
    above: set[str],
) -> Iterator[Sent]:
    """Collectives of a computation and of all that it calls, run ``times`` times."""
    if name in above:
        return
    for instruction in computations.get(name, []):
        if kind := _kind(instruction.opcode):
            # TPUs write a reduce-scatter as a fusion of this name around an all-reduce.
            scattered = kind == "all-reduce" and name.startswith("all-reduce-scatter")
            yield _sent("reduce-scatter" if scattered else kind, instruction, times, devices, whole=scattered)
            continue
        inner = times
        if instruction.opcode == "while":
            inner *= _trips(computations, instruction, unknown_trips)
        # A started operation and its update and end name the same computation: it runs once.
        if instruction.opcode in ("async-update", "async-done"):
            continue

        def inside(called: str, inner: float = inner) -> list[Sent]:
            return list(_walk(computations, called, inner, devices, unknown_trips, above | {name}))

        # Of a conditional's branches one runs: the dearest is taken.
        yield from max(map(inside, _branches(instruction)), key=_total, default=[])
        for called in _CALLS.findall(instruction.rest):
            yield from inside(called)


def _total(sent: list[Sent]) -> float:
    return sum(one.total for one in sent)


def _kind(opcode: str) -> str | None:
    base = opcode.removesuffix("-start")
    return base if base in COLLECTIVES else None


def _branches(instruction: _Instruction) -> list[str]:
    """Computations of which a conditional runs one, in either of the two ways in which XLA writes them."""
    branches = _BRANCHES.search(instruction.rest)
    names = [name.strip().lstrip("%") for name in branches[1].split(",")] if branches else []
    return names + _TWO_BRANCHES.findall(instruction.rest)


def _trips(computations: dict[str, list[_Instruction]], loop: _Instruction, unknown: int) -> int:
    """How often a loop runs: as annotated, or the constant that its condition compares the counter with."""
    if match := _TRIPS.search(loop.rest):
        return int(match[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    body = computations.get(condition[1], []) if condition else []
    constants = {item.name: int(match[1]) for item in body if (match := _CONSTANT.match(item.rest))}
    compared = " ".join(item.rest for item in body if item.opcode in ("compare", "fusion"))
    used = [value for name, value in constants.items() if re.search(rf"%?{re.escape(name)}\b", compared)]
    return used[0] if len(used) == 1 and used[0] > 0 else unknown


def _sent(kind: str, instruction: _Instruction, times: float, devices: int, whole: bool = False) -> Sent:
    """What one device takes in with ring algorithms; ``whole``: the type shown is the array before it is scattered."""
    arrays = [(_bytes(match), match[0]) for match in _SHAPE.finditer(instruction.result)]
    size, shape = max(arrays, default=(0.0, ""))
    if not instruction.opcode.endswith("-start"):
        size = sum(one for one, _ in arrays)
    group = _group(instruction.rest, devices)
    share = (group - 1) / group
    # The result of a plain reduce-scatter is one part; every other type shown is the whole array.
    part = 1.0 if whole or instruction.opcode.endswith("-start") else group
    factor = {"all-reduce": 2 * share, "reduce-scatter": share * part, "collective-permute": 1.0}.get(kind, share)
    origin = re.search(r'op_name="([^"]*)"', instruction.rest)
    chain = _CHAINED.search(instruction.rest)
    name = origin[1] if origin else instruction.name
    return Sent(kind, size * factor, times, group, shape, name, chain[1] if chain else "")


def _bytes(shape: re.Match[str]) -> float:
    bits = 8 if shape["type"] == "pred" else int(re.sub(r"^\D*(\d+).*$", r"\1", shape["type"]))
    return math.prod(int(size) for size in shape["sizes"].split(",") if size) * bits / 8


def _group(text: str, devices: int) -> int:
    """Devices in one replica group, in any of the three ways in which XLA writes them."""
    if match := _GROUPS.search(text):
        return max(1, len([one for one in match[1].split(",") if one]))
    if match := _IOTA_GROUPS.search(text):
        return int(match[1])
    if match := _MESH_GROUPS.search(text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'\s*=\s*(\d+)", match[1])}
        return math.prod(sizes.get(name, 1) for name in re.findall(r"'([^']+)'", match[2])) or devices
    return devices
