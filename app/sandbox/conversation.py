"""The conversation of a session: its items, in order."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.sandbox.errors import Refusal, item_not_found
from app.sandbox.ids import openai_id

MOST_CHARACTERS = 4_000_000  # held by one conversation; beyond, it forgets its oldest items
_CHARACTERS_PER_ITEM = 500  # what an item costs besides, about
_BASE64_BYTES = 3 / 4  # of a character
_MS_PER_INPUT_TOKEN = 100  # of audio


@dataclass(slots=True, kw_only=True)
class Item:
    """One item. Sound and pictures are not kept, only how long the sound is."""

    body: dict[str, Any]
    """The item as events show it."""

    audio_ms: int = 0
    characters: int = 0
    """How much the client has put into the item, or made the assistant put into it."""

    @property
    def id(self) -> str:
        """The id of the item: ``item_…``, or one of the client's."""
        return str(self.body["id"])

    @property
    def words(self) -> str:
        """Everything in the item that can be read."""
        parts = [self.body.get("arguments"), self.body.get("output")]
        for part in self.body.get("content", ()):
            parts += [part.get("text"), part.get("transcript")]
        return " ".join(part for part in parts if part)

    @property
    def text_tokens(self) -> int:
        """What reading the item costs: a token per word, which is near enough."""
        return len(self.words.split())

    @property
    def audio_tokens(self) -> int:
        """What listening to the item costs."""
        return -(-self.audio_ms // _MS_PER_INPUT_TOKEN)

    @property
    def has_assistant_audio(self) -> bool:
        """Whether the assistant speaks in it."""
        return any(part["type"] == "output_audio" for part in self.body.get("content", ()))


def client_item(given: Mapping[str, Any], *, bytes_per_ms: int) -> Item:
    """Return the item that a client has sent.

    Args:
        given: An item without faults.
        bytes_per_ms: Of sound in the session's input format.
    """
    body = {"id": openai_id("item"), "status": "completed", **given}
    audio_ms = 0
    if "content" in body:
        body["content"] = [
            {name: value for name, value in part.items() if name not in {"audio", "image_url"}}
            for part in given["content"]
        ]
        sound = sum(len(part.get("audio") or "") for part in given["content"])
        audio_ms = int(sound * _BASE64_BYTES) // bytes_per_ms
    return Item(body=body, audio_ms=audio_ms, characters=len(json.dumps(body)))


class Conversation:
    """Items in order. Bounded: what does not fit pushes the oldest out."""

    def __init__(self) -> None:
        self.id = openai_id("conv")
        self.items: list[Item] = []
        """Oldest first."""

    @property
    def has_assistant_audio(self) -> bool:
        """Whether the assistant has spoken, which fixes its voice."""
        return any(item.has_assistant_audio for item in self.items)

    def add(self, item: Item, *, after: str | None = None) -> str | None:
        """Add *item* and return the id of the one before it.

        Args:
            item: What to add; its id must be new.
            after: Id of the item to stand behind, ``root`` for the beginning, None for the end.

        Raises:
            Refusal: The id is taken, there is no item *after*, or *item* alone is too large.
        """
        if item.characters > MOST_CHARACTERS:
            raise Refusal(
                f"Invalid 'item': too large. Expected at most {MOST_CHARACTERS} characters.",
                code="string_above_max_length",
                param="item",
            )
        if any(item.id == other.id for other in self.items):
            raise Refusal(
                f"Error adding item: an item with id '{item.id}' already exists.",
                code="item_create_duplicate_item_id",
                param="item.id",
            )
        if after is None:
            index = len(self.items)
        elif after == "root":
            index = 0
        else:
            index = self.items.index(self.get(after, param="previous_item_id")) + 1
        self.items.insert(index, item)
        before = self.items[index - 1].id if index else None
        self._forget_oldest(but=item)
        return before

    def get(self, item_id: str, *, param: str = "item_id") -> Item:
        """Return the item with *item_id*.

        Raises:
            Refusal: There is none; *param* says where it was named.
        """
        for item in self.items:
            if item.id == item_id:
                return item
        raise item_not_found(item_id, param)

    def delete(self, item_id: str) -> None:
        """Take the item with *item_id* out; what stood behind it moves up.

        Raises:
            Refusal: There is none.
        """
        self.items.remove(self.get(item_id))

    def truncate(self, item_id: str, *, content_index: int, audio_end_ms: int) -> None:
        """Cut what the assistant said after *audio_end_ms*, and with it the whole transcript.

        Raises:
            Refusal: There is no such item, it holds no sound of the assistant, or less of it.
        """
        item = self.get(item_id)
        if not item.has_assistant_audio or content_index >= len(item.body["content"]):
            raise Refusal(
                "Only model output audio messages can be truncated.",
                code="invalid_value",
                param="item_id",
            )
        if audio_end_ms > item.audio_ms:
            raise Refusal(
                f"Audio content of {item.audio_ms}ms is already shorter than {audio_end_ms}ms.",
                code="invalid_value",
                param="audio_end_ms",
            )
        item.audio_ms = audio_end_ms
        item.body["content"][content_index]["transcript"] = ""

    def _forget_oldest(self, *, but: Item) -> None:
        characters = sum(_CHARACTERS_PER_ITEM + item.characters for item in self.items)
        while characters > MOST_CHARACTERS and len(self.items) > 1:
            oldest = next(item for item in self.items if item is not but)
            characters -= _CHARACTERS_PER_ITEM + oldest.characters
            self.items.remove(oldest)
