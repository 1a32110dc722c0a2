"""What a list of models changes about what is known of them."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.minting.catalogue import Catalogue
from app.minting.listed_models import MOST_UNKNOWN, Findings, changes
from app.minting.openai import UpstreamModel
from app.minting.profiles import Wish
from tests.read_profiles import CATALOGUE, profiles

MINI, TRANSCRIBER = "gpt-realtime-2.1-mini", "gpt-4o-mini-transcribe"
BUILT_IN = date(2027, 2, 26)  # the end of the transcriber
SOON, LATER = date(2027, 1, 31), date(2027, 6, 30)
FIRST = datetime(2026, 11, 21, 9, tzinfo=UTC)


class Watched:
    """Look after look, each an hour after the one before."""

    def __init__(self, *used: str) -> None:
        self.found = Findings()
        self.now = FIRST
        self._used = used

    def look(self, *answer: UpstreamModel) -> list[tuple[Any, ...]]:
        """Return what this answer changes: kind, model, before, after."""
        self.now += timedelta(hours=1)
        after = self.found.updated(answer, built_in=CATALOGUE, used=self._used, now=self.now)
        found = list(changes(self.found, after, built_in=CATALOGUE))
        self.found = after
        return [(c.kind, c.model, c.before, c.after) for c in found]

    def end_of(self, name: str) -> date | None:
        model = self.found.over(CATALOGUE).get(name)
        assert model is not None
        assert model.shutdown == self.found.shutdown_of(name, CATALOGUE)
        return model.shutdown


@pytest.fixture
def watched() -> Watched:
    return Watched()


def listed(name: str, shutdown: date | None = None) -> UpstreamModel:
    return UpstreamModel(name, shutdown)


def unreadable(name: str) -> UpstreamModel:
    return UpstreamModel(name, None, date_is_readable=False)


def test_a_list_that_says_what_is_known_changes_nothing(watched: Watched) -> None:
    everything = [UpstreamModel(model.id, model.shutdown) for model in CATALOGUE.models]

    assert watched.look(*everything) == []
    assert watched.look(*everything) == []
    assert watched.found.over(CATALOGUE).models == CATALOGUE.models


def test_a_list_without_dates_leaves_those_that_are_built_in(watched: Watched) -> None:
    assert watched.look(*(listed(model.id) for model in CATALOGUE.models)) == []
    assert watched.end_of(TRANSCRIBER) == BUILT_IN


def test_an_end_is_announced_moved_and_withdrawn(watched: Watched) -> None:
    assert watched.look(listed(MINI, SOON)) == [("date_announced", MINI, None, SOON)]
    assert watched.look(listed(MINI, LATER)) == [("date_moved", MINI, SOON, LATER)]
    assert watched.look(listed(MINI, SOON)) == [("date_moved", MINI, LATER, SOON)]
    assert watched.look(listed(MINI)) == [("date_withdrawn", MINI, SOON, None)]
    assert watched.end_of(MINI) is None


@pytest.mark.parametrize("other", [SOON, LATER])
def test_what_openai_says_goes_before_what_is_built_in(watched: Watched, other: date) -> None:
    assert watched.look(listed(TRANSCRIBER, other)) == [
        ("date_moved", TRANSCRIBER, BUILT_IN, other)
    ]
    assert watched.end_of(TRANSCRIBER) == other


def test_when_it_says_nothing_any_more_what_is_built_in_holds(watched: Watched) -> None:
    watched.look(listed(TRANSCRIBER, SOON))

    assert watched.look(listed(TRANSCRIBER)) == [("date_moved", TRANSCRIBER, SOON, BUILT_IN)]


def test_a_model_of_ours_that_is_no_longer_listed_keeps_its_day(watched: Watched) -> None:
    watched.look(listed(MINI, SOON))

    assert watched.look() == [("vanished", MINI, SOON, SOON)]
    assert watched.end_of(MINI) == SOON
    assert watched.found.lists(MINI) is False
    assert watched.look(listed(MINI, SOON)) == [("appeared", MINI, SOON, SOON)]


def test_since_when_it_says_so_is_remembered(watched: Watched) -> None:
    watched.look(listed(MINI, SOON))
    said_at = watched.now
    watched.look(listed(MINI, SOON))

    assert watched.found.listed[MINI].said_at == said_at
    assert watched.found.listed[MINI].listed_at == watched.now > said_at


# What cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "says",
    [
        listed(MINI, date(1970, 1, 1)),
        listed(MINI, FIRST.date()),
        listed(MINI, FIRST.date() - timedelta(days=1)),
        listed(MINI, date(2999, 12, 31)),
        unreadable(MINI),
    ],
    ids=str,
)
@pytest.mark.parametrize("before", [None, SOON])
def test_an_end_that_cannot_be_leaves_what_was_known_and_is_told_once(
    watched: Watched, says: UpstreamModel, before: date | None
) -> None:
    watched.look(listed(MINI, before))

    assert watched.look(says) == [("date_doubted", MINI, before, before)]
    assert watched.look(says) == []
    assert watched.end_of(MINI) == before
    assert watched.look(listed(MINI, before)) == []
    assert watched.found.listed[MINI].doubted_at is None


def test_an_end_that_was_announced_holds_when_its_day_has_come(watched: Watched) -> None:
    watched.look(listed(MINI, SOON))
    watched.now = datetime(2027, 3, 1, tzinfo=UTC)

    assert watched.look(listed(MINI, SOON)) == []
    model = watched.found.over(CATALOGUE).get(MINI)
    assert model is not None
    assert model.status_on(watched.now.date()) == "retired"


def test_an_end_long_past_that_the_catalogue_knows_is_no_news(watched: Watched) -> None:
    gone = CATALOGUE.get("gpt-realtime-mini-2025-10-06")
    assert gone is not None

    assert watched.look(listed(gone.id, gone.shutdown)) == []


def test_the_first_of_two_entries_counts(watched: Watched) -> None:
    watched.look(listed(MINI, SOON), listed(MINI, LATER), unreadable(MINI))

    assert watched.end_of(MINI) == SOON
    assert watched.found.listed[MINI].doubted_at is None


# Strangers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gpt-realtime-3-mini", "gpt-5-transcribe", "whisper-2", "gpt-4o-transcription"]
)
def test_what_looks_like_ours_is_told_of_and_not_offered(watched: Watched, name: str) -> None:
    assert watched.look(listed(name, LATER)) == [("appeared", name, None, LATER)]
    assert [model.id for model in watched.found.unknown(CATALOGUE)] == [name]
    assert watched.found.over(CATALOGUE).get(name) is None
    assert watched.look() == [("vanished", name, LATER, LATER)]
    assert watched.found.unknown(CATALOGUE) == []
    assert name not in watched.found.listed


@pytest.mark.parametrize(
    "name",
    ["gpt-6", "dall-e-9", "ft:gpt-realtime:acme::1", "gpt-audio-mini", "GPT-Realtime-3", "r" * 99],
)
def test_other_models_are_passed_over(watched: Watched, name: str) -> None:
    assert watched.look(listed(name, LATER)) == []
    assert watched.found.listed == {}


def test_a_flood_of_strangers_is_kept_up_to_a_bound_and_ours_are_among_them(
    watched: Watched,
) -> None:
    flood = [listed(f"gpt-realtime-{number}-mini") for number in range(5000)]

    assert len(watched.look(*flood, listed(MINI, SOON))) == MOST_UNKNOWN + 1
    assert watched.end_of(MINI) == SOON


def test_an_id_that_a_profile_names_is_watched_whatever_it_looks_like() -> None:
    watched = Watched("my-deployment")

    watched.look(listed("my-deployment", SOON))

    assert watched.found.shutdown_of("my-deployment", CATALOGUE) == SOON


# Whatever it says ---------------------------------------------------------------------------

IDS = st.sampled_from([model.id for model in CATALOGUE.models] + ["gpt-realtime-3", "gpt-live-1"])
ANSWERS = st.lists(
    st.builds(
        UpstreamModel,
        IDS,
        st.none() | st.dates(date(1, 1, 1), date(9999, 12, 31)) | st.dates(SOON, LATER),
        st.booleans(),
    ),
    max_size=20,
)


def every_catalogue(looks: list[list[UpstreamModel]]) -> Iterator[Catalogue]:
    watched = Watched()
    for answer in looks:
        watched.look(*answer)
        yield watched.found.over(CATALOGUE)


@given(st.lists(ANSWERS, max_size=4))
def test_no_list_stops_mints_on_the_day_it_comes(looks: list[list[UpstreamModel]]) -> None:
    read = profiles()
    for catalogue in every_catalogue(looks):
        read.follow(catalogue)
        assert read.session_for("user", Wish(), today=FIRST.date()).model == MINI
        assert len(catalogue.models) == len(CATALOGUE.models)


@given(st.lists(ANSWERS, max_size=4), st.dates(FIRST.date(), date(2036, 1, 1)))
def test_whatever_was_listed_every_day_to_come_has_its_answer(
    looks: list[list[UpstreamModel]], today: date
) -> None:
    read = profiles()
    for catalogue in every_catalogue(looks):
        read.follow(catalogue)
        [binding] = read.bindings(today)
        assert (binding.session is None) == (binding.refusal is not None)
        assert isinstance(read.warnings(today), list)
