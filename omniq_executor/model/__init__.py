"""What a task is, its options, ids and stored forms. No I/O and no clock."""

import sys

from . import codec, dependencies

# Stores hold pickles that name what is in these two, and named them by where they stood when they were written.
sys.modules["omniq_executor.codec"] = codec
sys.modules["omniq_executor.dependencies"] = dependencies
