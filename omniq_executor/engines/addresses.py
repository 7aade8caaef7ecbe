"""What is known of executors beyond what each Executor has: clusters by their addresses, and ways to fit some."""

from collections.abc import Callable
from concurrent.futures import Executor
from importlib import import_module
from typing import Any

from ..errors import EngineError

SCHEMES = {"dask": "distributed", "ray": "ray"}
"""The schemes of addresses, and what must be installed for each."""


def check_address(address: str) -> str:
    """Return an address of a cluster. Raises ValueError for what is none."""
    scheme, _, where = address.partition("://")
    if scheme not in SCHEMES or not where:
        known = " or ".join(f"{scheme}://host:port" for scheme in SCHEMES)
        raise ValueError(f"{address!r} is no address of a cluster, as {known}")
    return address


def maker_of(address: str) -> Callable[[], Executor]:
    """Return what makes an executor for a cluster. Raises EngineError if what it needs is not installed."""
    scheme = address.partition("://")[0]
    try:
        module = import_module(f".{scheme}", __package__)
    except ImportError as error:
        raise EngineError(
            f"{address} needs {SCHEMES[scheme]}, which is not installed: pip install 'omniq-executor[{scheme}]'"
        ) from error
    return lambda: module.connect(address)


def fitted(executor: Executor | Callable[[], Executor]) -> Executor | Callable[[], Executor]:
    """Return an executor, or what makes one, in a form that runs each chunk once and says how many slots it has."""
    if isinstance(executor, Executor):
        return _fit(executor)
    return lambda: _fit(executor())


def _fit(executor: Any) -> Executor:
    if not isinstance(executor, Executor):
        raise EngineError(f"engine= made {executor!r}, which is no concurrent.futures.Executor")
    if type(executor).__module__.partition(".")[0] == "distributed":
        from .dask import fit

        return fit(executor)
    return executor
