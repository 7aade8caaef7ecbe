"""A process pool whose calls and results are kept on disk."""
