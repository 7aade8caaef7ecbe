"""The store that is a folder of files."""
