"""distilabel 1.5: a pipeline of `LoadDataFromDicts` and `TextGeneration`, as its documentation has it.

It sends one batch, waits for all of it and takes the next, so a batch is as large as the requests that may be in flight. Both
steps get that batch size, since the default of 50 in either would limit the other. Two replicas with half the batch each were
slower (9.7 against 7.1 s for 2,000 replies at 256). Its log level is raised: with present versions of `openai` it would
otherwise print a line for every HTTP request.
"""

from __future__ import annotations

import os
import sys

from workload import MODEL, arguments, prompts


def main() -> int:
    """Read the flags and ask."""
    flags = arguments().parse_args()
    os.environ["DISTILABEL_LOG_LEVEL"] = "WARNING"
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with Pipeline(name="benchmark", cache_dir=flags.output_dir) as pipeline:
        load = LoadDataFromDicts(
            data=[{"instruction": prompt} for prompt in prompts(flags.num_requests)], batch_size=flags.concurrency
        )
        generate = TextGeneration(
            llm=OpenAILLM(
                model=MODEL,
                base_url=flags.base_url,
                api_key="none",
                generation_kwargs={"max_new_tokens": 4096},
            ),
            input_batch_size=flags.concurrency,
        )
        load >> generate
    distiset = pipeline.run(use_cache=False)
    generations = distiset["default"]["train"]["generation"]
    return int(sum(text is not None for text in generations) != flags.num_requests)


if __name__ == "__main__":
    sys.exit(main())
