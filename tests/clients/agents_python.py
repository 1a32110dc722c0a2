"""The package `openai-agents`, opened as the README says, with a tool of its own."""

# It runs in the clients' own environment, which mypy does not see; the test puts the recipe there.
# mypy: ignore-errors

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any, Literal

import httpx2
from agents import function_tool
from agents.realtime import RealtimeSession
from recipe import open_session

Event = dict[str, Any]

SPEECH = Path(__file__).with_name("speech.pcm").read_bytes()
TRANSCRIBED = "conversation.item.input_audio_transcription.completed"


def mint() -> Event:
    """Sign in with what stands on stdin, and return the answer of POST /realtime/token."""
    given = json.load(sys.stdin)
    with httpx2.Client(base_url=given.pop("service")) as http:
        granted = http.post("/auth/token", data={"grant_type": "password", **given})
        granted.raise_for_status()
        bearer = {"Authorization": f"Bearer {granted.json()['access_token']}"}
        minted = http.post("/realtime/token", headers=bearer)
        minted.raise_for_status()
        return minted.json()


@function_tool
def get_weather(city: Literal["Berlin", "Paris"]) -> str:
    """Tell the weather of a city."""
    return "rain"


async def events_until(session: RealtimeSession, *kinds: str) -> list[Event]:
    """Receive what the server sends until one event of each kind has come."""
    events = []
    async for event in session:
        assert event.type != "error", event
        if event.type == "raw_model_event" and event.data.type == "raw_server_event":
            events.append(event.data.data)
            if {received["type"] for received in events} >= set(kinds):
                break
    return events


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["type"] == kind]


def said(events: list[Event]) -> str:
    return of_kind(events, "response.output_audio_transcript.done")[0]["transcript"]


async def converse(minted: Event) -> Event:
    """Take a written turn, a spoken one and one with a function call; report on them."""
    async with await open_session(minted, [get_weather]) as session:
        await session.send_message("good morning")
        written = await events_until(session, "response.done")

        for start in range(0, len(SPEECH), 4800):
            await session.send_audio(SPEECH[start : start + 4800])
        spoken = await events_until(session, TRANSCRIBED, "response.done")

        await session.send_message("please use get_weather")
        calling = await events_until(session, "response.done")
        concluded = await events_until(session, "response.done")

    everything = written + spoken + calling + concluded
    [call] = calling[-1]["response"]["output"]
    sounds = of_kind(spoken, "response.output_audio.delta")
    return {
        "session": [event["session"] for event in everything if "session" in event][-1],
        "written": said(written),
        "heard": of_kind(spoken, TRANSCRIBED)[0]["transcript"],
        "spoken": said(spoken),
        "sound": sum(len(base64.b64decode(sound["delta"])) for sound in sounds),
        "called": {"name": call["name"], "arguments": json.loads(call["arguments"])},
        "concluded": said(concluded),
    }


if __name__ == "__main__":
    json.dump(asyncio.run(converse(mint())), sys.stdout)
