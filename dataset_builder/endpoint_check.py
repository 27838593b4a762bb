"""Where going on would only burn money: refused settings, or a cost limit without token counts."""

from __future__ import annotations

from collections.abc import Sequence

from dataset_builder.errors import RunError
from dataset_builder.outcome import Outcome

MAX_REFUSED = 20
"""Refusals at the start of a run after which the settings, and not the requests, must be what the endpoint refuses."""


class EndpointCheck:
    """Looks at the outcomes of a run as they come.

    Args:
        has_cost_limit: whether `max_cost_usd` is given.
    """

    def __init__(self, *, has_cost_limit: bool) -> None:
        self.has_cost_limit = has_cost_limit
        self._num_refused = self._num_replies = 0

    def check(self, outcomes: Sequence[Outcome]) -> None:
        """Count outcomes.

        Raises:
            RunError: if all the first requests were refused, or the cost is limited and cannot be known.
        """
        refusals = [outcome.refusal for outcome in outcomes if outcome.refusal is not None]
        self._num_refused += len(refusals)
        self._num_replies += sum(outcome.body is not None for outcome in outcomes)
        if refusals and self._num_refused >= MAX_REFUSED and not self._num_replies:
            status, message = refusals[-1]
            raise RunError(
                f"The endpoint refused the first {MAX_REFUSED} requests, the last one with HTTP {status}: {message}. "
                "Change the setting that it does not take, and ask again with --retry_refused."
            )
        uncounted = any(o.body is not None and (o.prompt_tokens, o.completion_tokens) == (None, None) for o in outcomes)
        if uncounted and self.has_cost_limit:
            raise RunError(
                "`max_cost_usd` is given but the endpoint reports no token counts, so the cost cannot be known; leave the "
                "limit away, or set one at your provider."
            )
