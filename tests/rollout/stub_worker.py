"""Stands for p2o.rollout.vllm_worker at the far end of the pipes: it does as it is told, whatever that does to them."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def reply(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    options = json.loads(sys.stdin.readline())
    time.sleep(options.get("start_s", 0.0))
    reply({"ok": {"context": 64}})
    if options.get("deaf"):
        time.sleep(600)
    for line in sys.stdin:
        message = json.loads(line)
        for number in range(message.get("count", 0)):
            reply({"done": number})
        reply({"ok": len(line)})


if __name__ == "__main__":
    main()
