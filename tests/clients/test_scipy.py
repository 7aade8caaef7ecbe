"""scipy: functions that take a map-like `workers=`, on `executor.map`."""

import signal
from typing import Any

import pytest

from omniq_executor import PersistentExecutor

np = pytest.importorskip("numpy", reason="scipy is in the extra `clients`")
optimize = pytest.importorskip("scipy.optimize", reason="scipy is in the extra `clients`")
integrate = pytest.importorskip("scipy.integrate", reason="scipy is in the extra `clients`")

WAIT_S = 30.0
BOUNDS = [(-2.0, 2.0), (-2.0, 2.0)]


def evolve(function: Any, workers: Any, **options: Any) -> Any:
    return optimize.differential_evolution(
        function, BOUNDS, rng=1, popsize=5, maxiter=10, polish=False, updating="deferred", workers=workers, **options
    )


def shifted(x: Any, shift: float) -> float:
    return float(np.sum((x - shift) ** 2))


def steep(x: float) -> Any:
    return np.array([np.sqrt(x), 1 / (1 + x)])


def fail_in_the_middle(x: Any) -> float:
    if abs(x[0]) < 1:
        raise ArithmeticError("in the middle")
    return float(x[0])


def test_differential_evolution_finds_what_it_finds_alone(executor: PersistentExecutor) -> None:
    found, alone = evolve(optimize.rosen, executor.map), evolve(optimize.rosen, map)
    assert (found.nit, found.nfev, found.fun, found.x.tolist()) == (alone.nit, alone.nfev, alone.fun, alone.x.tolist())
    assert len(executor.futures()) == found.nfev


def test_differential_evolution_passes_its_args(executor: PersistentExecutor) -> None:
    assert evolve(shifted, executor.map, args=(0.5,)).x == pytest.approx([0.5, 0.5], abs=0.2)


def test_the_exception_of_the_objective_is_raised(executor: PersistentExecutor) -> None:
    with pytest.raises(ArithmeticError, match=r"(?m)^in the middle$") as caught:
        evolve(fail_in_the_middle, executor.map)
    assert "in fail_in_the_middle" in str(caught.value.__cause__)


def test_brute_finds_what_it_finds_alone(executor: PersistentExecutor) -> None:
    grid = (slice(-2, 2, 0.25), slice(-2, 2, 0.25))
    options = {"args": (0.5,), "full_output": True, "finish": None}
    found = optimize.brute(shifted, grid, workers=executor.map, **options)
    alone = optimize.brute(shifted, grid, workers=1, **options)
    for mine, its in zip(found, alone, strict=True):
        assert np.array_equal(mine, its)
    assert found[0].tolist() == [0.5, 0.5]


def test_quad_vec_integrates_what_it_integrates_alone(executor: PersistentExecutor) -> None:
    found, _ = integrate.quad_vec(steep, 0, 1, workers=executor.map)
    alone, _ = integrate.quad_vec(steep, 0, 1)
    assert found == pytest.approx(alone)


SCRIPT = """
import logging, os, signal, sys
logging.basicConfig()
from scipy.optimize import differential_evolution, rosen
from omniq_executor import PersistentExecutor

def noted(x):
    fd = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"evaluated\\n")
    os.close(fd)
    return rosen(x)

def die(intermediate_result):
    if intermediate_result.nit == 3:
        print(intermediate_result.nfev, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

with PersistentExecutor(2) as executor:
    found = differential_evolution(
        noted, [(-2, 2)] * 2, rng=1, popsize=5, maxiter=6, polish=False, updating="deferred", workers=executor.map,
        callback=die if "die" in sys.argv else None,
    )
print(found.nfev, found.fun == differential_evolution(
    rosen, [(-2, 2)] * 2, rng=1, popsize=5, maxiter=6, polish=False, updating="deferred").fun)
"""


@pytest.mark.slow
def test_a_killed_optimisation_repeats_no_evaluation(script: Any) -> None:
    script.write(SCRIPT)
    killed = script.run("die")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    evaluated = int(killed.stdout)
    assert len(script.journal.lines()) == evaluated
    done = script.run()
    assert done.returncode == 0, done.stderr
    assert f"{evaluated} of {evaluated} calls are done" in done.stderr
    count, same = done.stdout.split()
    assert same == "True"
    assert len(script.journal.lines()) == int(count) > evaluated
