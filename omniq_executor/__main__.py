"""`python -m omniq_executor` is the command `omniq-executor`."""

from .cli.main import main

if __name__ == "__main__":
    main(prog_name="omniq-executor")
