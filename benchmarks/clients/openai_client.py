"""The bare `openai` client: a pool of workers, each asking for the next prompt and reading the reply's text.

It renders, checks and keeps nothing, so it is the least that a generator on top of this client can cost.
"""

from __future__ import annotations

import asyncio
import sys

from openai import AsyncOpenAI, DefaultAioHttpClient, DefaultAsyncHttpxClient
from workload import MODEL, arguments, prompts


async def ask_all(base_url: str, num_requests: int, concurrency: int, transport: str) -> int:
    """Return the number of replies with a text."""
    pending, num_replies = prompts(num_requests), 0
    http_client = DefaultAioHttpClient() if transport == "aiohttp" else DefaultAsyncHttpxClient()
    async with AsyncOpenAI(base_url=base_url, api_key="none", http_client=http_client) as client:

        async def work() -> None:
            nonlocal num_replies
            for prompt in pending:  # the iterator is shared: each worker takes the next prompt
                completion = await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": prompt}]
                )
                num_replies += bool(completion.choices[0].message.content)

        await asyncio.gather(*(work() for _ in range(concurrency)))
    return num_replies


def main() -> int:
    """Read the flags and ask."""
    parser = arguments()
    parser.add_argument("--transport", choices=["aiohttp", "default"], default="aiohttp")
    flags = parser.parse_args()
    num_replies = asyncio.run(ask_all(flags.base_url, flags.num_requests, flags.concurrency, flags.transport))
    return int(num_replies != flags.num_requests)


if __name__ == "__main__":
    sys.exit(main())
