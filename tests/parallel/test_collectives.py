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


TPU_PROGRAM = """HloModule step
%begin (p: bf16[8,64]) -> bf16[64,64] {
  ROOT %g = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, GROUPS
}

%go_on (p: bf16[8,64]) -> bf16[64,64] {
  ROOT %g = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, GROUPS
}

%all-reduce-scatter.3 (p: f32[64]) -> f32[8] {
  %s = f32[64]{0:T(256)} all-reduce(%p), channel_id=9, GROUPS, to_apply=%add
  ROOT %d = f32[8]{0:T(256)} dynamic-slice(%s, %i), dynamic_slice_sizes={8}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %a = bf16[64,64]{1,0} fusion(%x), kind=kOutput, calls=%begin
  %b = bf16[64,64]{1,0} fusion(%a), kind=kOutput, calls=%go_on
  ROOT %c = f32[8]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.3
}
""".replace("GROUPS", "replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}")


def test_what_a_tpu_spreads_over_fusions_is_sent_once():
    assert collectives.by_kind(TPU_PROGRAM, 16) == {
        "all-gather": 64 * 64 * 2 * 7 / 8,
        "reduce-scatter": 64 * 4 * 7 / 8,
    }
    # Negative control: two channels are two.
    other = TPU_PROGRAM.replace("channel_id=7", "channel_id=8", 1)
    assert collectives.by_kind(other, 16)["all-gather"] == 2 * 64 * 64 * 2 * 7 / 8


def test_collectives_that_share_a_channel_outside_of_fusions_are_several():
    line = "%a = f32[8]{0} all-gather(%x), channel_id=1"
    again = line.replace("%a", "%b")
    assert received(f"{line}\n  {again}") == 2 * received(line) > 0
