"""Parts of a file that are ours, between markers, so that what people write around them is kept.

<!-- embedsmith:results -->
our text, replaced each time
<!-- /embedsmith:results -->
"""

from __future__ import annotations

import re

from dataset_builder.errors import InputError

_PART = re.compile(r"<!-- embedsmith:([\w-]+) -->\n(.*?)<!-- /embedsmith:\1 -->", re.DOTALL)


def parts(text: str) -> dict[str, str]:
    """Return what stands between the markers, by the names of the parts."""
    return dict(_PART.findall(text))


def merged(existing: str, fresh: str, path: str) -> str:
    """Return `existing` with its parts replaced by those of `fresh`; a part that a person took out stays out.

    Raises:
        InputError: if `existing` has none of our markers, or one without its end.
    """
    ours, begun = parts(fresh), set(re.findall(r"<!-- embedsmith:([\w-]+) -->", existing))
    theirs = parts(existing)
    if not theirs:
        raise InputError(
            f"{path} has no part between our markers, so where the results go is not known; move it away to have it written "
            "anew, or put `<!-- embedsmith:results -->` and `<!-- /embedsmith:results -->` on two lines of it."
        )
    if broken := begun - theirs.keys():
        name = sorted(broken)[0]
        raise InputError(
            f"{path} has `<!-- embedsmith:{name} -->` without `<!-- /embedsmith:{name} -->` after it; put it back, or move "
            "the file away to have it written anew."
        )
    return _PART.sub(
        lambda found: f"<!-- embedsmith:{found[1]} -->\n{ours.get(found[1], found[2])}<!-- /embedsmith:{found[1]} -->",
        existing,
    )
