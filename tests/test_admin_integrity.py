"""The page /admin/integrity: who verifies, what was found, what may be taken along."""

import asyncio
import re
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from app.audit.checkpoint_file import CheckpointFile
from app.audit.checkpoints import Checkpoint, PublicKey
from app.audit.events import Event, audit_events
from app.audit.retention import Retention, Terms
from app.audit.verifications import Verifications
from app.identity.users import OPERATOR, User
from app.runtime import Runtime
from app.settings import Settings
from tests.admin_visitor import HOME, Browser, browser, text_of, token_in
from tests.clock import StandingClock
from tests.conftest import PASSWORD
from tests.installation import Installation, installation_of
from tests.log_rows import rows
from tests.waiting import until

URL = "/admin/integrity"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"public_url": HOME})


@pytest.fixture
async def page(runtime: Runtime, admin: User) -> AsyncIterator[Browser]:
    """A browser in which an admin is signed in."""
    async with browser(runtime) as client:
        assert (await client.sign_in(admin.email)).status_code == 303
        yield client


@pytest.fixture
async def owner(runtime: Runtime, clock: StandingClock) -> Installation:
    owner = installation_of(runtime, clock)
    await owner.append(5)
    await owner.checkpoint()
    return owner


async def verified(page: Browser) -> httpx.Response:
    """Ask for a walk, and return the page when it is over and written down."""
    begun = await page.act(URL, f"{URL}/verify")
    assert begun.headers["Location"] == URL
    answer = begun

    async def finished() -> bool:
        nonlocal answer
        answer = await page.get(URL)
        return "data-follow" not in answer.text

    await until(finished)
    return answer


async def edit(owner: Installation, seq: int) -> None:
    edited = sa.update(audit_events).where(audit_events.c.seq == seq).values(recorded_at=1)
    await owner.attack(lambda tx: tx.execute(edited))


async def test_a_log_that_nobody_edited_is_shown_as_whole(
    owner: Installation, page: Browser, admin: User
) -> None:
    assert "has not been verified yet" in text_of(await page.get(URL))

    answer = await verified(page)

    text = text_of(answer)
    assert "whole Everything is as it was written." in text
    assert re.search(r"\d+ rows and 2 checkpoints checked, 1 of them outside of the database", text)
    [row] = await rows(owner.database, action="verification.start")
    assert (row["actor"], row["credential"]) == (admin.id, row["sign_in"])


async def test_each_fault_is_named_and_leads_to_its_row(owner: Installation, page: Browser) -> None:
    last = await owner.last_seq()
    await edit(owner, last - 1)
    cut = sa.delete(audit_events).where(audit_events.c.seq == last - 3)
    await owner.attack(lambda tx: tx.execute(cut))

    answer = await verified(page)

    text = text_of(answer)
    assert "tampered with 2 faults." in text
    assert f"{last - 3} missing" in text
    assert f"{last - 1} changed: not the text" in text
    [link] = re.findall(rf'<a href="([^"]*)">{last - 1}</a>', answer.text)
    assert f"row {last - 1}" in text_of(await page.get(link))
    assert f">{last - 3}</a>" not in answer.text  # there is no such row


async def test_how_the_last_walk_ended_is_known_after_a_new_start(
    owner: Installation, page: Browser, admin: User, runtime: Runtime
) -> None:
    await edit(owner, 4)
    await verified(page)

    runtime.verifications.current = None  # as a new process knows it
    text = text_of(await page.get(URL))

    assert "tampered with The last one ended" in text
    assert "with 1 fault; verify again to see which" in text


async def test_a_walk_of_another_process_is_shown_until_it_ends(
    owner: Installation, page: Browser, runtime: Runtime, clock: StandingClock
) -> None:
    other = Verifications(
        keys=[owner.signer.public_key],
        file=owner.file,
        database=owner.database,
        log=runtime.log,
        clock=clock,
    )
    await other.start({"actor": "operator"})

    async def ended() -> bool:
        return await other.last() is not None

    await until(ended)
    begun = Event(action="verification.start", outcome="succeeded")
    await runtime.log.record([begun])  # one more, which no end follows yet

    under_way = await page.get(URL)
    clock.advance(minutes=61)
    await page.sign_in("admin@example.com")
    given_up = await page.get(URL)

    assert "Another process of the service has been verifying since" in text_of(under_way)
    assert '<meta http-equiv="refresh"' in under_way.text
    assert "whole The last one ended" in text_of(given_up)
    await other.close()


async def test_a_walk_that_was_broken_off_says_nothing_about_the_log(
    owner: Installation, page: Browser, runtime: Runtime
) -> None:
    owner.file.path.unlink()
    owner.file.path.mkdir()  # nobody can read that

    answer = await verified(page)

    assert "broken off The database or the file of checkpoints could not be read" in text_of(answer)
    found: list[dict[str, Any]] = []

    async def written() -> bool:
        found[:] = await rows(owner.database, action="verification.finish")
        return bool(found)

    await until(written)
    [row] = found
    assert (row["outcome"], row["reason"]) == ("failed", "broken_off")
    assert await runtime.verifications.last() is None


async def test_of_those_who_ask_at_once_one_begins_a_walk_and_the_others_wait(
    page: Browser,
) -> None:
    form = {"formToken": token_in((await page.get(URL)).text)}

    answers = await asyncio.gather(*(page.post(f"{URL}/verify", data=form) for _ in range(5)))

    assert {answer.status_code for answer in answers} == {303, 409}
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert "A verification is under way" in text_of(refused)


async def test_an_auditor_sees_all_of_it_and_starts_nothing(
    owner: Installation, runtime: Runtime
) -> None:
    await runtime.users.add("bob@example.com", role="auditor", password=PASSWORD, by=OPERATOR)
    async with browser(runtime) as theirs:
        await theirs.sign_in("bob@example.com")

        shown = await theirs.get(URL)
        refused = await theirs.act(URL, f"{URL}/verify")
        taken = await theirs.get(f"{URL}/checkpoint.json")

    assert shown.status_code == taken.status_code == 200
    assert "Verify now" not in shown.text
    assert refused.status_code == 403
    assert await rows(owner.database, action="verification.start") == []


async def test_checkpoint_and_key_are_files_that_fit_each_other(
    owner: Installation, page: Browser
) -> None:
    line = await page.get(f"{URL}/checkpoint.json")
    key = await page.get(f"{URL}/public-key.pem")

    checkpoint = Checkpoint.read_line(line.content)
    assert PublicKey.read(key.content).signed(checkpoint)
    assert line.text in owner.file.path.read_text()
    assert line.headers["Content-Disposition"].endswith(f'"checkpoint-{checkpoint.seq}.json"')
    assert key.headers["Content-Disposition"] == 'attachment; filename="public-key.pem"'
    assert line.headers["Cache-Control"] == "no-store"


async def test_without_a_row_there_is_nothing_to_take_along(page: Browser) -> None:
    assert "There is no checkpoint yet" in text_of(await page.get(URL))
    assert (await page.get(f"{URL}/checkpoint.json")).status_code == 404


async def test_checkpoints_are_paged_newest_first_and_strangers_are_told_apart(
    owner: Installation, page: Browser
) -> None:
    signed = [(await owner.newest()).seq]
    for _ in range(24):
        await owner.append(1)
        await owner.checkpoint()
        signed.append((await owner.newest()).seq)
    forged = "UPDATE audit_checkpoints SET signed = replace(signed, '\"kind\"', '\"kind\" ')"
    newest = await owner.newest()
    await owner.attack(lambda tx: tx.exec_driver_sql(f"{forged} WHERE at = {newest.at}"))

    first = await page.get(URL)
    older = re.search(r'rel="next" href="([^"]*)"', first.text)
    assert older
    second = await page.get(unescape(older[1]))

    seen = [seqs_in(answer) for answer in (first, second)]
    assert [len(seqs) for seqs in seen] == [20, 5]
    assert seen[0] + seen[1] == signed[::-1]
    assert text_of(first).count("not by our key") == 1
    assert "This is the beginning." in text_of(second)
    assert (await page.get(f"{URL}?before=yesterday")).status_code == 422


def seqs_in(answer: httpx.Response) -> list[int]:
    cells = re.findall(r'data-label="Row" class="number">(?:<a[^>]*>)?([\d,]+)', answer.text)
    return [int(cell.replace(",", "")) for cell in cells]


async def test_a_database_that_was_set_back_is_told_before_all_else(
    owner: Installation, page: Browser, runtime: Runtime
) -> None:
    await runtime.continuity.look(owner.database)
    cut = sa.delete(audit_events).where(audit_events.c.seq > 6)
    await owner.attack(lambda tx: tx.execute(cut))
    await runtime.checkpoints.keep()

    text = text_of(await page.get(URL))

    assert "Nothing is minted, and nothing written." in text
    assert "accept-rollback" in text
    assert (await page.act(URL, f"{URL}/verify")).status_code == 503


async def test_what_is_kept_and_what_went_last_is_told(
    owner: Installation, page: Browser, runtime: Runtime, clock: StandingClock, tmp_path: Path
) -> None:
    before = text_of(await page.get(URL))
    clock.advance(days=3)
    await page.sign_in("admin@example.com")
    retention = Retention(
        Terms(personal_days=1, days=2, archive=tmp_path / "archive"),
        pruning=runtime.pruning,
        database=runtime.database,
        log=runtime.log,
        clock=clock,
    )
    await retention.run()
    await runtime.users.add("bob@example.com", role="user", password=PASSWORD, by=OPERATOR)
    await runtime.erasure.erase("bob@example.com", by=OPERATOR)

    after = text_of(await page.get(URL))

    assert "Personal data for good Rows for good People erased on request nobody so far" in before
    assert "Personal data for good, last on 2026-11-2" in after
    assert re.search(r"Rows for good; up to row \d+ taken out on 2026-11-2", after)
    assert "People erased on request last on 2026-11-2" in after
    assert CheckpointFile(runtime.settings.checkpoint_path).last() is not None
