"""Bytes of collectives, on lines as compilers write them."""

import pytest

from jaxanom.parallel import collectives

PROGRAM = """HloModule step
%body (p: f32[4]) -> f32[4] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %s = f32[4]{{0}} all-reduce(f32[4]{{0}} %p), replica_groups={{{{0,1}},{{2,3}}}}
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  {line}
}}
"""


def received(line, num_devices=4):
    return collectives.received_bytes(PROGRAM.format(line=line), num_devices)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("%a = f32[8]{0} all-gather(f32[2]{0} %x), replica_groups={}", 32 * 3 / 4),
        ("%a = f32[8]{0} all-reduce(f32[8]{0} %x)", 2 * 32 * 3 / 4),
        ("%a = f32[8]{0} all-reduce(%x), replica_groups=[2,2]<=[4]", 2 * 32 / 2),
        ("%a = f32[2]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}", 3 * 8),
        ("%a = bf16[8]{0} collective-permute(bf16[8]{0} %x)", 16),
        ("%a = (f32[2]{0}, f32[8]{0}) all-gather-start(f32[2]{0} %x)", 32 * 3 / 4),
        ("%a = (f32[4]{0}, f32[2]{0}) all-reduce(%x, %y)", 2 * 24 * 3 / 4),
        ("%a = f32[8]{0} add(%x, %x)", 0),
    ],
)
def test_a_collective_brings_what_is_not_here_yet(line, wanted):
    assert received(line) == wanted


def test_a_loop_counts_as_often_as_it_turns():
    line = (
        "%w = f32[4]{0} while(%x), condition=%c, body=%body, "
        'backend_config={"known_trip_count":{"n":"5"}}'
    )
    assert received(line) == 5 * 2 * 16 / 2


def test_a_loop_of_unknown_length_that_sends_is_refused():
    with pytest.raises(ValueError, match="unknown length"):
        received("%w = f32[4]{0} while(%x), condition=%c, body=%body")
