"""How one actor steps its environments.

`parl_cli.vectorizers.{Serial,Thread,Subprocess,Hybrid,Async,Native}Vectorizer(env_fns, …)` are Gymnasium vector envs.
They are imported when they are asked for, so that a worker process loads only what it runs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parl_cli.vectorizers.asynchronous import AsyncVectorizer
    from parl_cli.vectorizers.auto import AutoVectorizer
    from parl_cli.vectorizers.base import Vectorizer
    from parl_cli.vectorizers.hybrid import HybridVectorizer
    from parl_cli.vectorizers.native import NativeVectorizer
    from parl_cli.vectorizers.serial import SerialVectorizer
    from parl_cli.vectorizers.subprocess import SubprocessVectorizer
    from parl_cli.vectorizers.thread import ThreadVectorizer

__all__ = [
    "AsyncVectorizer",
    "AutoVectorizer",
    "HybridVectorizer",
    "NativeVectorizer",
    "SerialVectorizer",
    "SubprocessVectorizer",
    "ThreadVectorizer",
    "Vectorizer",
]

_MODULES = {
    "AsyncVectorizer": "asynchronous",
    "AutoVectorizer": "auto",
    "HybridVectorizer": "hybrid",
    "NativeVectorizer": "native",
    "SerialVectorizer": "serial",
    "SubprocessVectorizer": "subprocess",
    "ThreadVectorizer": "thread",
    "Vectorizer": "base",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
