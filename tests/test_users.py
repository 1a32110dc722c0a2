import pytest

from app.audit.events import Event
from app.base.errors import Conflict, InvalidRequest, NotFound
from app.identity.users import OPERATOR, Role, User, users
from app.runtime import Runtime
from tests.conftest import PASSWORD
from tests.log_rows import rows


async def give_role(runtime: Runtime, user: User, role: Role) -> None:
    """Change the role of *user* in the database."""
    await runtime.log.record(
        [Event(action="test.act", outcome="succeeded", target=user.id)],
        lambda tx: tx.execute(users.update().where(users.c.id == user.id).values(role=role)),
    )


async def test_a_user_is_added_with_a_row(runtime: Runtime) -> None:
    user = await runtime.users.add(
        " Ada@Example.COM ", role="auditor", password=PASSWORD, by=OPERATOR
    )

    assert (user.email, user.role, user.disabled_at) == ("ada@example.com", "auditor", None)
    assert user.password_hash.startswith("$argon2id$")
    [row] = await rows(runtime.database)
    assert (row["action"], row["actor"], row["target"]) == ("user.create", "operator", user.id)
    assert "ada" not in str(row)


async def test_an_address_has_one_account(runtime: Runtime, alice: User) -> None:
    with pytest.raises(Conflict):
        await runtime.users.add("ALICE@example.com", role="user", password=PASSWORD, by=OPERATOR)

    assert len(await rows(runtime.database, action="user.create")) == 1


@pytest.mark.parametrize(
    ("email", "role", "password", "field"),
    [
        ("alice", "user", PASSWORD, "email"),
        ("@example.com", "user", PASSWORD, "email"),
        ("a b@example.com", "user", PASSWORD, "email"),
        ("a@exam\nple.com", "user", PASSWORD, "email"),
        ("a" * 250 + "@example.com", "user", PASSWORD, "email"),
        ("a@example.com", "root", PASSWORD, "role"),
        ("a@example.com", "user", "short", "password"),
    ],
)
async def test_what_cannot_be_used_is_refused_and_the_field_is_named(
    runtime: Runtime, email: str, role: str, password: str, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await runtime.users.add(email, role=role, password=password, by=OPERATOR)

    assert [error.field for error in caught.value.errors] == [field]
    assert await rows(runtime.database) == []


async def test_disabling_and_enabling_are_rows(runtime: Runtime, alice: User) -> None:
    disabled = await runtime.users.disable(alice.email, by="usr_admin")
    enabled = await runtime.users.enable(alice.email, by="usr_admin")

    assert disabled.disabled_at is not None
    assert enabled.disabled_at is None
    acts = [(row["action"], row["actor"]) for row in await rows(runtime.database, target=alice.id)]
    assert acts[1:] == [("user.disable", "usr_admin"), ("user.enable", "usr_admin")]


async def test_nobody_is_changed_by_a_wrong_address(runtime: Runtime, alice: User) -> None:
    with pytest.raises(NotFound):
        await runtime.users.disable("bob@example.com", by=OPERATOR)

    assert [user.disabled_at for user in await runtime.users.all()] == [None]


async def test_a_role_is_given_by_id_and_to_accounts_alone(runtime: Runtime, alice: User) -> None:
    for nobody in (alice.email, "usr_" + "0" * 26, "\x00"):
        with pytest.raises(NotFound, match="No account has this id"):
            await runtime.directory.set_role(nobody, "admin", by=OPERATOR)

    user = await runtime.users.get(alice.id)
    assert user is not None
    assert user.role == "user"
    assert (await runtime.directory.set_role(alice.id, "auditor", by=OPERATOR)).role == "auditor"
