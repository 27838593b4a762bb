"""The exceptions of embedsmith.

```
EmbedsmithError
├── InputError    what the user gave cannot be used; nothing was written   (exit code 2)
└── RunError      the input was fine, the work could not be finished       (exit code 1)
```

A message has three beats: what was given, what is needed, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EmbedsmithError(Exception):
    """Base of all errors that are shown as one sentence instead of a traceback."""


class InputError(EmbedsmithError, ValueError):
    """What the user gave cannot be used: a value, a key, a file. Nothing was written."""


class RunError(EmbedsmithError, RuntimeError):
    """The input was fine but the work could not be finished: an endpoint, a disk, a Hub."""


def suggestion(given: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `" Did you mean 'x'?"` for the known word nearest to `given`, or an empty string."""
    words = {word.lower(): word for word in known}
    nearest = difflib.get_close_matches(given.lower(), words, n=1, cutoff=cutoff)
    return f" Did you mean '{words[nearest[0]]}'?" if nearest else ""
