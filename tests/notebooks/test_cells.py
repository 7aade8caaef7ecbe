"""What people do in cells: modules that are edited under autoreload, %run, await, blocks of `with`; each goes on."""

from pathlib import Path
from typing import Any

import pytest
from kernels import Kernel, kernel_in

# Of the libraries under the kernel, not of ours.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::ResourceWarning"),
]

MAKE = "from omniq_executor import PersistentExecutor\nexecutor = PersistentExecutor(1, resume='always')"


def test_what_is_edited_in_a_module_under_autoreload_runs_again_and_nothing_else(
    kernel: Kernel, tmp_path: Path
) -> None:
    module = tmp_path / "shop.py"
    module.write_text("def price(n):\n    return n\n\n\ndef name(n):\n    return f'item {n}'\n")
    kernel.run("%load_ext autoreload\n%autoreload 2\nimport shop")
    kernel.run(MAKE)
    shop = "print(sum(executor.map(shop.price, range(3))), [*executor.map(shop.name, range(2))])"
    assert kernel.run(shop) == "3 ['item 0', 'item 1']\n"
    module.write_text("def price(n):\n    return n + 1\n\n\ndef name(n):\n    return f'item {n}'\n")
    assert kernel.run(shop) == "6 ['item 0', 'item 1']\n"
    kernel.run(MAKE)
    assert kernel.run(shop) == "6 ['item 0', 'item 1']\n"
    counts = "print({reason.name: count for reason, count in executor.resumed.counts.items() if count})"
    assert kernel.run(counts) == "{'RESULT': 5}\n"


def test_a_script_that_is_run_by_a_cell_goes_by_its_own_name_and_counts_as_failed_if_it_did(
    kernel: Kernel, tmp_path: Path, open_store: Any
) -> None:
    script = tmp_path / "job.py"
    text = """
from omniq_executor import PersistentExecutor
def f(n):
    return 1 / n
with PersistentExecutor(1) as job:
    print(job.queue, [*job.map(f, %s)], job.resumed.reused)
"""
    script.write_text(text % "[2, 1]")
    assert kernel.run("%run job.py") == "job [0.5, 1.0] 0\n"
    script.write_text(text % "[2, 1, 0]")
    kernel.end(kernel.begin("%run job.py"))
    script.write_text(text % "[2, 1, 4]")
    assert kernel.run("%run job.py") == "job [0.5, 1.0, 0.25] 2\n"
    script.write_text(text % "[2, 1, 0]")
    kernel.end(kernel.begin("%run job.py"))  # the last cell
    kernel.shut_down()
    assert open_store(kernel.store).runs()[-1].clean is False
    with kernel_in(tmp_path) as again:
        script.write_text(text % "[2, 1, 4]")
        assert again.run("%run job.py") == "job [0.5, 1.0, 0.25] 3\n"


def test_futures_are_awaited_in_cells_and_an_executor_that_is_made_there_can_be_made_again(kernel: Kernel) -> None:
    kernel.run("def f(n): return n * n\ndef never(): import threading; threading.Event().wait()")
    make = """
import asyncio
from omniq_executor import PersistentExecutor
executor = PersistentExecutor(1, resume="always")
print(await executor.submit(f, 3))
async def squares(numbers):
    for future in [executor.submit(f, n) for n in numbers]:
        yield await future
print([n async for n in squares(range(4))])
async for n in squares(range(4, 6)):
    print(n)
"""
    squares = "9\n[0, 1, 4, 9]\n16\n25\n"
    assert kernel.run(make) == squares
    kernel.run("waiting = executor.submit(never)")
    assert kernel.run(make) == squares
    assert kernel.run("print(executor.resumed.reused, type(waiting.exception(0)).__name__)") == "6 PoolBroken\n"


def test_a_block_that_a_call_has_failed_goes_on_when_its_cell_is_mended(kernel: Kernel, open_store: Any) -> None:
    block = """
from omniq_executor import PersistentExecutor
def half(n): return n / 2
def f(n): return %s
with PersistentExecutor(1) as executor:
    print(sum(executor.map(half, range(3))), sum(executor.map(f, range(3))), executor.resumed.reused)
"""
    assert kernel.fail(block % "1 / n") == "ZeroDivisionError"
    assert kernel.run(block % "1") == "1.5 3 3\n"
    kernel.shut_down()
    assert [run.settled for run in open_store(kernel.store).runs()] == [True, True]  # it has ended well


def test_two_notebooks_in_a_folder_do_not_touch_each_others_calls(
    kernel: Kernel, tmp_path: Path, open_store: Any, wait_until: Any
) -> None:
    make = """
import time
from pathlib import Path
from omniq_executor import PersistentExecutor
executor = PersistentExecutor(1)
def f(n):
    while not Path("gate").exists():
        time.sleep(0.01)
    return n
"""
    kernel.run(make)
    kernel.run("futures = [executor.submit(f, n) for n in range(3)]")
    with kernel_in(tmp_path, "report.ipynb") as other:
        other.run(make)
        other.run("futures = [executor.submit(f, n) for n in range(3)]")
        other.kill()
    (tmp_path / "gate").touch()
    assert kernel.run("print([future.result() for future in futures])") == "[0, 1, 2]\n"
    kernel.shut_down()
    assert {task.queue for task in open_store(kernel.store).find() if task.result is None} == {"report"}
    with kernel_in(tmp_path, "report.ipynb") as other:
        other.run(make)
        assert other.run("print([*executor.map(f, range(3))], executor.resumed.reused)") == "[0, 1, 2] 3\n"


def test_a_constant_or_default_that_autoreload_puts_in_place_reaches_the_workers(
    kernel: Kernel, tmp_path: Path
) -> None:
    """It patches the module as it is: nothing was loaded anew, and workers went on with the old one, for good."""
    text = "LIMIT = {limit}\n\n\nclass Kind:\n    size = {size}\n\n\n"
    text += "def add(n, step={step}):\n    return n + LIMIT + Kind.size + step\n"
    module = tmp_path / "sums.py"
    module.write_text(text.format(limit=1, size=0, step=0))
    kernel.run("%load_ext autoreload\n%autoreload 2\nimport sums")
    kernel.run(f"{MAKE}\ndef own(n):\n    return sums.add(n)")
    ask = "print(*executor.map(sums.add, [0, 1]), *executor.map(own, [0, 1]), executor.submit(own, 0).result())"
    assert kernel.run(ask) == "1 2 1 2 1\n"
    for values, expected in (
        ({"limit": 100, "size": 0, "step": 0}, "100 101 100 101 100\n"),
        ({"limit": 100, "size": 2000, "step": 0}, "2100 2101 2100 2101 2100\n"),
        ({"limit": 100, "size": 2000, "step": 30000}, "32100 32101 32100 32101 32100\n"),
    ):
        module.write_text(text.format(**values))
        assert kernel.run(ask) == expected


def test_a_function_that_is_new_in_a_module_under_autoreload_is_found_by_workers(
    kernel: Kernel, tmp_path: Path
) -> None:
    """Autoreload compiles it with other flags than an import does, and workers took it for another version."""
    module = tmp_path / "parts.py"
    module.write_text("def whole(n):\n    return n\n")
    kernel.run("%load_ext autoreload\n%autoreload 2\nimport parts")
    kernel.run(MAKE)
    assert kernel.run("print(*executor.map(parts.whole, [1, 2]))") == "1 2\n"
    module.write_text("def half(n):\n    return n / 2\n\n\ndef whole(n):\n    return 2 * half(n)\n")
    assert kernel.run("print(*executor.map(parts.whole, [1, 2]))") == "1.0 2.0\n"


def test_a_cell_that_is_edited_twice_says_so_of_its_calls_whether_it_has_failed_or_not(kernel: Kernel) -> None:
    kernel.run("from omniq_executor import PersistentExecutor\nexecutor = PersistentExecutor(1)")
    define = "LIMIT = {}\ndef clip(n):\n    assert n < 9, n\n    return min(n, LIMIT)"
    counts = "print({reason.name: count for reason, count in executor.resumed.counts.items() if count})"
    why = "print(executor.submit(clip, 1).why())"
    for limit in 2, 3:
        kernel.run(define.format(limit))
        kernel.run("list(executor.map(clip, [1, 4]))")
    assert kernel.run(counts) == "{'CODE': 2, 'AFRESH': 2}\n"
    kernel.run(define.format(4))
    assert kernel.run(why) == "run, since the constant LIMIT changed\n"
    failing = "list(executor.map(clip, [9], timeout=60))"
    assert kernel.end(kernel.begin(failing))[1] == "AssertionError"
    assert kernel.end(kernel.begin(failing))[1] == "AssertionError"
    assert kernel.run(counts) == "{'AGAIN': 1, 'CODE': 3, 'AFRESH': 3}\n"
    assert kernel.end(kernel.begin("clip(9)"))[1] == "AssertionError"
    kernel.run(define.format(5).replace("9", "99"))
    assert kernel.run(why.replace("1", "9")) == "run, since its own code changed, the constant LIMIT changed\n"
