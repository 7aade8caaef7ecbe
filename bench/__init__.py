"""PersistentExecutor beside ProcessPoolExecutor: `python -m bench` from the repository's root."""
