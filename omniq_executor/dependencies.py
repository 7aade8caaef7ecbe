"""An older name of model/dependencies.py, what stands for the result of another task.

Pickles in stores that were written then refer to it by this one.
"""

import sys

from .model import dependencies

sys.modules[__name__] = dependencies
