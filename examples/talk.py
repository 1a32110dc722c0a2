"""A whole walk with the official SDK: sign in, get a token, open a session, talk.

    python examples/talk.py http://127.0.0.1:8000 demo@example.com

Needs the packages httpx, openai and websockets. The password is asked for, or read from a pipe.
"""

import asyncio
import getpass
import sys

import httpx
from openai import AsyncOpenAI


async def talk(service: str, email: str, password: str) -> None:
    """Say hello once, and print what comes back."""
    async with httpx.AsyncClient(base_url=service) as http:
        form = {"grant_type": "password", "username": email, "password": password}
        signed_in = await http.post("/auth/token", data=form)
        signed_in.raise_for_status()
        bearer = {"Authorization": f"Bearer {signed_in.json()['access_token']}"}
        answer = await http.post("/realtime/token", headers=bearer)
        answer.raise_for_status()
        minted = answer.json()

    # The token opens the session it was minted for; the SDK adds /realtime to the address.
    openai = AsyncOpenAI(
        api_key=minted["token"],
        websocket_base_url=minted["connect"]["websocket"].removesuffix("/realtime"),
    )
    async with openai.realtime.connect(model=minted["model"]) as session:
        said = {"type": "input_text", "text": "Hello!"}
        await session.conversation.item.create(
            item={"type": "message", "role": "user", "content": [said]}
        )
        await session.response.create()
        async for event in session:
            if event.type == "response.output_audio_transcript.delta":
                print(event.delta, end="", flush=True)  # noqa: T201 - that is the point
            elif event.type == "response.done":
                print()  # noqa: T201 - likewise
                return


if __name__ == "__main__":
    secret = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().strip()
    asyncio.run(talk(sys.argv[1], sys.argv[2], secret))
