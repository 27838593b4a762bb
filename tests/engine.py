"""Plays vLLM: `python -m tests.engine --port N` serves the recorded replies there, once it says so."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # datatrove starts it as a script

from tests.llm_server import LLMServer
from tests.replies import recorded_texts

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--slow", action="store_true")
    recorded = recorded_texts()
    given = parser.parse_args()
    latency_s = 1.0 if given.slow else 0.0
    with LLMServer(lambda id_, _: recorded[id_], model="claude", port=given.port, latency_s=latency_s):
        while True:
            time.sleep(1)
