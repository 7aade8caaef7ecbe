"""An older name of model/codec.py, the stored forms of values.

Pickles in stores that were written then refer to it by this one.
"""

import sys

from .model import codec

sys.modules[__name__] = codec
