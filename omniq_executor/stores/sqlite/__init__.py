"""The store that is an SQLite database."""
