"""The example's stand-in for a cloud: a server of the OpenAI API on loopback that has one answer. So the quickstart
shows what happens to a hard request without an account anywhere; a real one takes `base_url`, `model` and a key.

    cloud.py PORT       runs until it is ended; prints what it is asked
"""

from __future__ import annotations

import sys

from aiohttp import web

MODEL = "stand-in"
ANSWER = "Month 1: sow. Month 2: water and feed. Month 3: harvest. (A real large model would say more.)"


async def models(_: web.Request) -> web.Response:
    """What edged asks to see whether the link is up."""
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


async def chat(request: web.Request) -> web.Response:
    """The one answer, with the tokens it would have cost."""
    body = await request.json()
    asked = body["messages"][-1]["content"]
    print(f"cloud: asked {asked!r}", flush=True)
    message = {"role": "assistant", "content": ANSWER}
    counted = {"prompt_tokens": sum(len(str(m["content"])) for m in body["messages"]) // 4, "completion_tokens": 24}
    return web.json_response(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {**counted, "total_tokens": sum(counted.values())},
        }
    )


def main() -> None:
    """Serve."""
    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", chat)])
    print("cloud: ready", flush=True)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
