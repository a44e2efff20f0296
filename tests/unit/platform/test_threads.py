"""How OpenMP threads wait."""

from __future__ import annotations

import pytest

from echo_sglang.platform.threads import SPIN_COUNT, limit_spinning


def test_spinning_is_limited_where_the_user_said_nothing():
    environ = {"OMP_NUM_THREADS": "2"}
    limit_spinning(environ)
    assert environ == {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": str(SPIN_COUNT)}


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_said_stays(said):
    environ = dict(said)
    limit_spinning(environ)
    assert environ == said
