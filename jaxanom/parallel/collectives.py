"""What a compiled program sends between devices, read from its text."""

import math
import re
from collections.abc import Iterator

from jaxanom.errors import UserError

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_SIZES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_SENT = re.compile(
    r"= (.*?) "
    r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_WHILE = re.compile(r" while\(.*body=%?([\w.\-]+)")
_TURNS = re.compile(r'known_trip_count[^\d]*"?n"?[^\d]*(\d+)')
_CALLED = re.compile(r" (call|conditional|fusion)\(.*(?:to_apply|calls)=%?([\w.\-]+)")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SUMMED_IN_PARTS = "all-reduce-scatter"
"""How TPU programs name what sums and keeps one part: a reduce-scatter."""


def received_bytes(text: str, num_devices: int) -> float:
    """Counts what one device receives in a run of a compiled program.

    In a group of n devices, an all-gather and an all-to-all bring what is not here yet,
    a share (n - 1) / n of their result; a reduce-scatter n - 1 times its result; a sum
    2 (n - 1) / n of its operand, as the best ring does both halves of it; a permutation
    all of it. Loops count as often as they turn. TPU programs spread one collective
    over several fusions, beside other work; there its channel tells that it is one.

    Args:
      text: The compiled program.
      num_devices: n of a collective that names no groups.

    Raises:
      UserError: a loop of unknown length that sends.
    """
    return sum(by_kind(text, num_devices).values())


def by_kind(text: str, num_devices: int) -> dict[str, float]:
    """Returns the same, split: {"all-reduce": bytes, ...} of the kinds that occur."""
    bodies, begun = dict(_computations(text)), set()

    def total(name: str, fused: bool = False) -> dict[str, float]:
        totals: dict[str, float] = {}
        for line in bodies.get(name, ()):
            sent, channel = _SENT.search(line), _CHANNEL.search(line)
            one = None
            if fused and sent and channel:
                one = channel[1], *_ARRAY.findall(sent[1])
            if sent and (one is None or one not in begun):
                begun.add(one)
                received = _received(line, sent, num_devices)
                if name.startswith(_SUMMED_IN_PARTS):
                    _add(totals, {"reduce-scatter": received / 2})
                else:
                    _add(totals, {sent[2]: received})
            loop = _WHILE.search(line)
            if loop:
                inside, turns = total(loop[1]), _TURNS.search(line)
                if inside and not turns:
                    raise UserError(f"a loop of unknown length sends: {line.strip()}")
                _add(totals, inside, int(turns[1]) if turns else 0)
            called = _CALLED.search(line)
            if called:
                _add(totals, total(called[2], called[1] == "fusion"))
        return totals

    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    return total(entry[1])


def _received(line: str, sent: re.Match, num_devices: int) -> float:
    """Returns the bytes that one collective brings to a device."""
    kind, starts = sent[2], bool(sent[3])
    sizes = [_bytes(*array) for array in _ARRAY.findall(sent[1])]
    if starts and kind in ("all-gather", "collective-permute", "reduce-scatter"):
        sizes = sizes[len(sizes) // 2 :][:1]  # (operand, result, ...) of one in flight
    size, count = sum(sizes), _group_size(line, num_devices)
    factors = {
        "all-reduce": 2 * (count - 1) / count,
        "reduce-scatter": count - 1,
        "collective-permute": 1.0,
    }
    return size * factors.get(kind, (count - 1) / count)


def _group_size(line: str, num_devices: int) -> int:
    listed, counted = _LISTED.search(line), _COUNTED.search(line)
    named = _NAMED.search(line)
    if listed:
        return len(listed[1].split(","))
    if named:  # mesh['a'=2,'b'=8] {'b'}
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return int(counted[1]) if counted else num_devices


def _add(totals: dict[str, float], more: dict[str, float], times: int = 1) -> None:
    for kind, value in more.items():
        totals[kind] = totals.get(kind, 0.0) + times * value


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            name, lines = start[1], []
        elif line.startswith("}"):
            yield name, lines
        else:
            lines.append(line)


def _bytes(kind: str, sizes: str) -> int:
    size = _SIZES.get(kind, 0)  # a token is no data
    for number in filter(None, sizes.split(",")):
        size *= int(number)
    return size
