from __future__ import annotations

from echo_sglang.sim.clock import START_S, TimeModule, VirtualClock


def test_the_device_computes_while_the_host_goes_on() -> None:
    clock = VirtualClock()
    first_s = clock.launch(0.5)
    clock.charge(0.1)
    second_s = clock.launch(0.2)
    # The second batch waits for the first: 0.5 + 0.2, though the host is only at 0.1.
    assert (first_s - START_S, round(second_s - START_S, 9)) == (0.5, 0.7)
    assert round(clock.elapsed_s, 9) == 0.1


def test_a_device_that_has_been_idle_starts_when_it_is_given_work() -> None:
    clock = VirtualClock()
    clock.launch(0.5)
    clock.wait_until(START_S + 2.0)
    assert clock.launch(0.25) == START_S + 2.25


def test_waiting_for_what_has_passed_does_not_turn_time_back() -> None:
    clock = VirtualClock()
    clock.charge(3.0)
    clock.wait_until(START_S + 1.0)
    assert clock.elapsed_s == 3.0


def test_no_two_readings_are_equal_and_they_never_run_far_ahead() -> None:
    clock = VirtualClock()
    time = TimeModule(clock)
    readings = [time.perf_counter() for _ in range(1000)]
    assert len(set(readings)) == 1000
    assert readings == sorted(readings)
    assert readings[-1] - clock.now_s < 1e-5
    clock.charge(1.0)
    assert time.perf_counter() == clock.now_s
