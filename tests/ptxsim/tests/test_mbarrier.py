"""mbarrier: phases, arrivals, bytes expected; what waits for it is ordered; misuse."""

import numpy as np
import ptx
import ptxsim
import pytest

SETUP = """
  .shared .align 8 .b64 bar; .shared .align 4 .b32 box[128];
  .reg .b32 %t; .reg .b32 %v; .reg .b32 %s; .reg .b64 %out; .reg .b64 %state; .reg .pred %p; .reg .pred %first; .reg .pred %done;
  mov.u32 %t, %tid.x; setp.eq.u32 %first, %t, 0; ld.param.u64 %out, [out]; mad.wide.u32 %out, %t, 4, %out;
  shl.b32 %s, %t, 2;
"""
# The first half of the block writes, the second half reads what it wrote once all have arrived.
HANDOVER = """
  @%first mbarrier.init.shared::cta.b64 [bar], 64;
  bar.sync 0;
  mov.u32 %v, box; add.u32 %v, %v, %s; setp.ge.u32 %p, %t, 64; @%p bra READ;
  mul.lo.u32 %s, %t, 3; st.shared.b32 [%v], %s;
  mbarrier.arrive.shared::cta.b64 %state, [bar];
  ret;
READ:
WAIT: mbarrier.try_wait.parity.shared::cta.b64 %done, [bar], 0; @!%done bra WAIT;
  ld.shared.b32 %s, [%v+-256]; st.global.b32 [%out], %s; ret;
"""


def run(body: str, threads=128, **options) -> np.ndarray:
    text = f"{ptx.HEADER}.visible .entry k(.param .u64 out) {{ {SETUP} {body} }}"
    out = np.zeros(threads, np.uint32)
    ptxsim.launch(
        ptxsim.Module(text).kernels["k"], 1, threads, [out], **{"races": True, "allow_early_exit": True, **options}
    )
    return out


def fault(body: str, **options) -> ptxsim.DeviceFault:
    with pytest.raises(ptxsim.DeviceFault) as caught:
        run(body, **options)
    return caught.value


@pytest.mark.parametrize("races", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_handover(races, seed):
    expected = np.concatenate([np.zeros(64), 3 * np.arange(64)])
    np.testing.assert_array_equal(run(HANDOVER, races=races, seed=seed), expected)


def test_without_the_wait_it_is_a_race():
    body = HANDOVER.replace("@!%done bra WAIT;", "").replace("READ:", "READ: mov.u32 %s, 0;")
    assert fault(body, check_uninitialised=False).kind == "race"


def test_arriving_before_the_write_is_a_race():
    arrive = "mbarrier.arrive.shared::cta.b64 %state, [bar];"
    body = HANDOVER.replace(arrive, "").replace("st.shared.b32 [%v], %s;", f"{arrive} st.shared.b32 [%v], %s;")
    kinds = {fault(body, seed=seed).kind for seed in range(3)}
    assert kinds <= {"race", "uninitialised-shared"}


def test_phases():
    """The parity that is waited for is that of the phase that ends; the one before the first has ended already."""
    body = """@!%first ret;
    mbarrier.init.shared::cta.b64 [bar], 2; mov.b32 %s, 0;
    mbarrier.test_wait.parity.shared::cta.b64 %p, [bar], 1; @%p or.b32 %s, %s, 1;
    mbarrier.test_wait.parity.shared::cta.b64 %p, [bar], 0; @%p or.b32 %s, %s, 2;
    mbarrier.arrive.shared::cta.b64 %state, [bar];
    mbarrier.test_wait.shared::cta.b64 %p, [bar], %state; @%p or.b32 %s, %s, 4;
    mbarrier.arrive.release.cta.shared::cta.b64 _, [bar], 1;
    mbarrier.test_wait.acquire.cta.shared::cta.b64 %p, [bar], %state; @%p or.b32 %s, %s, 8;
    mbarrier.test_wait.parity.shared::cta.b64 %p, [bar], 0; @%p or.b32 %s, %s, 16;
    mbarrier.test_wait.parity.shared::cta.b64 %p, [bar], 1; @%p or.b32 %s, %s, 32;
    mbarrier.inval.shared::cta.b64 [bar]; mbarrier.init.shared::cta.b64 [bar], 7;
    st.global.b32 [%out], %s; ret;"""
    assert run(body)[0] == 1 | 8 | 16


def test_bytes():
    """A phase also waits for the bytes that copies were announced to bring."""
    body = """@!%first ret;
    mbarrier.init.shared::cta.b64 [bar], 1; mov.b32 %s, 0;
    mbarrier.arrive.expect_tx.shared::cta.b64 %state, [bar], 48;
    mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], 16;
    mbarrier.test_wait.shared::cta.b64 %p, [bar], %state; @%p or.b32 %s, %s, 1;
    mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 32;
    mbarrier.test_wait.shared::cta.b64 %p, [bar], %state; @%p or.b32 %s, %s, 2;
    mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 32;
    mbarrier.test_wait.shared::cta.b64 %p, [bar], %state; @%p or.b32 %s, %s, 4;
    st.global.b32 [%out], %s; ret;"""
    assert run(body)[0] == 4


@pytest.mark.parametrize(
    "body, message",
    [
        ("mbarrier.arrive.shared::cta.b64 %state, [bar]; ret;", "no mbarrier"),
        ("mbarrier.init.shared::cta.b64 [bar], 1; mbarrier.init.shared::cta.b64 [bar], 1; ret;", "twice"),
        ("mbarrier.init.shared::cta.b64 [bar], 0; ret;", "count"),
        ("mbarrier.init.shared::cta.b64 [bar], 1; mbarrier.arrive.shared::cta.b64 _, [bar], 2; ret;", "more arrivals"),
    ],
)
def test_misuse(body, message):
    found = fault("@!%first ret; " + body, check_uninitialised=False)
    assert found.kind == "invalid-mbarrier" and message in str(found)


@pytest.mark.parametrize("races", [False, True])
def test_a_wait_that_never_ends(races):
    body = HANDOVER.replace("mbarrier.arrive.shared::cta.b64 %state, [bar];", "")
    assert fault(body, races=races).kind == "deadlock"
