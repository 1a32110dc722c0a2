"""A backend that asks for tokens on behalf of its users, with FastAPI.

    TOKEN_SERVICE=http://127.0.0.1:8000 SERVICE_KEY=rtk_… uvicorn backend:app --port 3000

Needs the packages fastapi, httpx and uvicorn.
"""

import os
from typing import Annotated

import httpx
from fastapi import Cookie, FastAPI, HTTPException, Response

SESSIONS = {"a-cookie-nobody-can-guess": "their-user-17"}  # in place of your own sessions

app = FastAPI()
service = httpx.AsyncClient(
    base_url=os.environ["TOKEN_SERVICE"],
    headers={"Authorization": f"Bearer {os.environ['SERVICE_KEY']}"},
    timeout=12,  # seconds; the service answers within ten
)


@app.post("/session")
async def session(session: Annotated[str, Cookie()] = "") -> Response:
    """Give whoever is signed in here a token of their own, or say why not."""
    if session not in SESSIONS:
        raise HTTPException(401)
    answer = await service.post("/realtime/token", json={"user": SESSIONS[session]})
    if answer.status_code in {401, 403}:
        raise HTTPException(502)  # it is the key that is refused, and not the user
    kept = {"content-type", "cache-control", "retry-after"}
    headers = {name: value for name, value in answer.headers.items() if name in kept}
    return Response(answer.content, answer.status_code, headers)
