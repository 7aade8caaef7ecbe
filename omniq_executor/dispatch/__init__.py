"""The loop between stores and engines."""
