"""How OpenMP threads wait and where they run."""

from __future__ import annotations

import pytest

from echo_sglang.platform.threads import BINDING, SPIN_COUNT, limit_spinning, share_cores


def test_spinning_is_limited_where_the_user_said_nothing():
    environ = {"OMP_NUM_THREADS": "2"}
    limit_spinning(environ)
    assert environ == {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": str(SPIN_COUNT)}


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_said_stays(said):
    environ = dict(said)
    limit_spinning(environ)
    assert environ == said


@pytest.mark.parametrize(
    ("num_ranks", "cores", "binding"),
    [
        (2, [0, 1, 2, 3], "0,1|2,3"),
        (3, [0, 1, 2, 3], "0|1|2,3"),
        (3, [4, 7], "4|4|7"),
        (3, [5], "5|5|5"),
    ],
)
def test_every_rank_gets_cores(num_ranks, cores, binding):
    environ = {}
    share_cores(environ, num_ranks=num_ranks, cores=cores)
    assert environ == {BINDING: binding}


def test_one_rank_keeps_all_cores_and_a_binding_of_the_user_stays():
    environ = {}
    share_cores(environ, num_ranks=1, cores=[0, 1])
    assert environ == {}
    environ = {BINDING: "1|0"}
    share_cores(environ, num_ranks=2, cores=[0, 1])
    assert environ == {BINDING: "1|0"}
