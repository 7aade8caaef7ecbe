"""The code of the user's that a call runs: how it is found, compared, carried to a worker and loaded there."""
