"""What several commands take on their command line."""

from __future__ import annotations

import argparse
import math


def above_0(given: str, *, what: str = "a number") -> float:
    """A number above 0; ``what`` says in the error which kind is taken."""
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        message = f"{given!r} is not {what} above 0"
        raise argparse.ArgumentTypeError(message)
    return number
