"""blake2b alone: hashlib loads OpenSSL as well, which takes 5 to 10 ms of the start of each process."""

try:
    from _blake2 import blake2b  # as `random` imports its hash
except ImportError:  # a Python that was built without it
    from hashlib import blake2b

__all__ = ["blake2b"]
