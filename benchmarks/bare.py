"""The server that people write: FastAPI, httpx, no real check, no log, no limits, no profile.

It is what the benchmark compares with. Settings: `UPSTREAM_URL`, `PORT`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import uvicorn
from fastapi import FastAPI, Header, HTTPException

SESSION = {
    "type": "realtime",
    "model": "gpt-realtime-2.1-mini",
    "audio": {"input": {"transcription": {"model": "gpt-4o-mini-transcribe"}}},
}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Share one client."""
    async with httpx.AsyncClient(timeout=10) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/realtime/token")
async def token(authorization: Annotated[str | None, Header()] = None) -> dict[str, Any]:
    """Mint for whoever sends any header."""
    if not authorization:
        raise HTTPException(401)
    answer = await app.state.client.post(
        f"{os.environ['UPSTREAM_URL']}/realtime/client_secrets",
        headers={"Authorization": "Bearer sk-bench"},
        json={"session": SESSION},
    )
    answer.raise_for_status()
    minted = answer.json()
    return {"token": minted["value"], "expiresAt": minted["expires_at"], "sessionConfig": SESSION}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning", access_log=False)
