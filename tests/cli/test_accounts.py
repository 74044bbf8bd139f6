"""`rekontext accounts`, `keys` and `credits`: what operators do beside a server."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from rekontext.database import DatabaseUnavailable
from rekontext.models import SLUG
from tests.cli.commands import SCRIPT, SOON_S, Run, findings


def test_a_database_beside_another_secret_is_not_served(run: Run) -> None:
    """Every key would be refused. The line says where the secret is looked for, and no new one is made."""
    assert "to be made" in findings("ok")["secret"]
    run(["accounts", "create", "alice"])
    assert "data/secret fits" in findings("ok")["secret"]
    old = Path("data/secret").read_bytes()

    def refused(says: str) -> None:
        serve = [*SCRIPT, "serve", "--port", "0"]
        served = subprocess.run(serve, check=False, capture_output=True, text=True, timeout=SOON_S)
        assert (served.returncode, served.stdout, served.stderr.count("\n")) == (2, "", 1)
        assert says in served.stderr
        assert "`rekontext keys reset`" in served.stderr
        for arguments in (["keys", "create", "alice"], ["accounts", "create", "bob"]):
            outcome = run(arguments)
            assert (outcome.code, outcome.out) == (2, "")
            assert says in outcome.err
        assert says in findings("broken")["secret"]

    Path("data/secret").unlink()
    refused("data/secret is not there")
    assert not Path("data/secret").exists()
    Path("data/secret").write_bytes(b"another secret, as long as the old one")
    refused("another secret than data/secret")
    assert "alice" in run(["accounts", "list"]).out
    Path("data/secret").write_bytes(old)
    assert run(["keys", "create", "alice"]).code == 0


def test_the_secret_of_requests_own_webhooks_is_shown_and_replaced(run: Run) -> None:
    """For a receiver that is set up by an operator."""
    run(["accounts", "create", "alice"])
    shown = run(["accounts", "webhook-secret", "alice"]).out.strip()
    assert shown.startswith("whsec_")
    replaced = json.loads(run(["accounts", "webhook-secret", "alice", "--replace", "--json"]).out)["webhook_secret"]
    assert replaced == run(["accounts", "webhook-secret", "alice"]).out.strip() != shown


def test_where_the_secret_is_lost_all_keys_are_closed_and_new_ones_made(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is said that this is meant; never while the secret fits."""
    run(["accounts", "create", "alice"])
    assert "nothing to reset" in run(["keys", "reset", "--yes"]).err
    monkeypatch.setenv("REKONTEXT_SECRET", "a secret that is long enough to be one")
    assert "another secret than REKONTEXT_SECRET" in run(["keys", "create", "alice"]).err
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
    asked = run(["keys", "reset"])
    assert (asked.code, asked.out.strip()) == (130, "")
    assert f"every API key in {Path.cwd()}/data/rekontext.db" in asked.err
    assert "another secret" in run(["keys", "create", "alice"]).err
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert "Revoked: 1." in run(["keys", "reset"]).out
    assert run(["keys", "create", "alice"]).code == 0
    assert "REKONTEXT_SECRET fits" in findings("ok")["secret"]
    monkeypatch.delenv("REKONTEXT_SECRET")
    Path("data/secret").unlink()
    assert json.loads(run(["keys", "reset", "--yes", "--json"]).out) == {"revoked": 1}
    assert "data/secret fits" in findings("ok")["secret"]


def test_what_may_have_happened_is_not_said_to_have_failed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credits that are added once more are booked twice: look first."""
    run(["accounts", "create", "alice"])

    def broken(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("the database failed: gone", is_in_doubt=in_doubt)

    monkeypatch.setattr("rekontext.accounts.Acts.add_credits", broken)
    for in_doubt in (True, False):
        outcome = run(["credits", "add", "alice", "10"])
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
        assert ("may have happened: look" in outcome.err) is in_doubt


def test_operators_open_accounts_make_keys_and_give_credits(run: Run) -> None:
    """Each answer is one JSON document, and the first has the key of the new account."""
    opened = json.loads(run(["accounts", "create", "alice", "--credits", "10", "--json"]).out)
    assert opened["api_key"].startswith("rk_")
    assert (opened["name"], opened["credits"]) == ("alice", 10)
    made = json.loads(run(["keys", "create", "alice", "--scope", "read", "--sync-response", "json", "--json"]).out)
    assert (made["scopes"], made["sync_response"], made["account_id"]) == (["read"], "json", opened["id"])
    listed = json.loads(run(["keys", "list", opened["id"], "--json"]).out)["keys"]
    assert [each["id"] for each in listed] == [opened["key_id"], made["id"]]
    assert not any("api_key" in each for each in listed)
    assert json.loads(run(["keys", "revoke", made["id"], "--json"]).out)["revoked_at"] is not None
    assert json.loads(run(["credits", "add", "alice", "2.5", "--kind", "payment", "--json"]).out)["credits"] == 2.5
    assert "or a correction of less" in run(["credits", "add", "alice", "-0.5"]).err
    run(["credits", "add", "alice", "-0.5", "--kind", "correction"])
    assert json.loads(run(["credits", "show", "alice", "--json"]).out)["available"] == 12
    [account] = json.loads(run(["accounts", "list", "--json"]).out)["accounts"]
    assert (account["id"], account["available"]) == (opened["id"], 12)
    assert opened["id"] in run(["accounts", "list"]).out
    assert "$12.00 can be spent" in run(["credits", "show", "alice"]).out
    run(["credits", "add", "alice", "1000"])
    assert "$12.00 can be spent" in run(["credits", "add", "alice", "-1000", "--kind", "correction"]).out
    too_much = run(["credits", "add", "alice", "-13", "--kind", "correction"])
    assert (too_much.code, too_much.err.count("\n")) == (2, 1)
    assert "A correction can't take $13.00 away: $12.00 can be spent." in too_much.err


def test_a_key_is_revoked_by_its_id_or_by_itself(run: Run) -> None:
    """Whoever found one where it doesn't belong has nothing else of it; without an account all keys are listed."""
    alice, bob = (json.loads(run(["accounts", "create", name, "--json"]).out) for name in ("alice", "bob"))
    run(["keys", "revoke", alice["api_key"]])
    run(["keys", "revoke", bob["key_id"]])
    run(["keys", "create", "bob"])
    listed = json.loads(run(["keys", "list", "--json"]).out)["keys"]
    assert [(each["account_id"], each["revoked_at"] is None) for each in listed] == [
        (alice["id"], False),
        (bob["id"], False),
        (bob["id"], True),
    ]
    lines = run(["keys", "list"]).out.splitlines()
    assert [line for line in lines if line.startswith(("alice", "bob"))] == [
        f"alice ({alice['id']})",
        f"bob ({bob['id']})",
    ]
    strange = run(["keys", "revoke", alice["api_key"][:-1]])
    assert (strange.code, strange.err) == (2, "error: there is no such API key; it may be mistyped or cut short\n")


def test_every_key_of_an_account_is_revoked_at_once(run: Run) -> None:
    """What stops an account; another's keys go on."""
    alice, bob = (json.loads(run(["accounts", "create", name, "--json"]).out) for name in ("alice", "bob"))
    second = json.loads(run(["keys", "create", "alice", "--json"]).out)
    revoked = run(["keys", "revoke", "--all-of", "alice"])
    lines = revoked.out.splitlines()
    assert [line.split()[0] for line in lines] == [alice["key_id"], second["id"]]
    assert all(line.endswith("opens nothing any more.") for line in lines)
    assert run(["keys", "revoke", "--all-of", "alice"]).out == "The account has no open API key.\n"
    document = json.loads(run(["keys", "revoke", "--all-of", bob["id"], "--json"]).out)
    assert [(each["id"], each["account_id"]) for each in document["revoked"]] == [(bob["key_id"], bob["id"])]


def test_limits_are_set_and_lifted_one_by_one(run: Run) -> None:
    """What isn't given stays; without either they are shown."""
    opened = json.loads(run(["accounts", "create", "alice", "--json"]).out)

    def limits(*options: str) -> tuple[object, object]:
        document = json.loads(run(["accounts", "limits", "alice", *options, "--json"]).out)
        return document["monthly_cap"], document["in_flight_max"]

    assert limits() == (None, None)
    assert limits("--monthly-cap", "2.5") == (2.5, None)
    assert limits("--in-flight", "3") == (2.5, 3)
    shown = run(["accounts", "limits", "alice"]).out
    assert shown == f"alice ({opened['id']}) may spend $2.50 in a month at most, and have 3 edits at once.\n"
    assert limits("--monthly-cap", "0", "--in-flight", "none") == (0, None)
    assert limits("--monthly-cap", "none") == (None, None)
    assert "may spend without a cap, and have as many" in run(["accounts", "limits", opened["id"]]).out


def test_keys_and_accounts_are_listed_for_narrow_windows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a pipe there are 80 columns: whatever is copied or looked for stands whole on a line."""
    monkeypatch.setenv("COLUMNS", "80")
    first = json.loads(run(["accounts", "create", "alice", "--json"]).out)
    options = ["--scope", "read", "--scope", "edit", "--scope", "admin", "--requests-per-minute", "600"]
    made = json.loads(run(["keys", "create", "alice", "--expires-in-days", "30", *options, "--json"]).out)
    run(["keys", "revoke", first["key_id"]])
    revoked_at = json.loads(run(["keys", "list", "alice", "--json"]).out)["keys"][0]["revoked_at"]
    lines = run(["keys", "list", "alice"]).out.splitlines()
    assert lines[0] == f"{first['key_id']}  revoked {revoked_at}"
    assert lines[1:3] == [f"  {first['api_key'][: len(made['hint'])]}…  edit, read; answers image", "  default"]
    assert lines[3] == f"{made['id']}  open until {made['expires_at']}"
    assert lines[4] == f"  {made['hint']}…  admin, edit, read; 600 requests a minute; answers image"
    listed = run(["accounts", "list"]).out.splitlines()
    assert listed[0].startswith(f"{first['id']}  opened ")
    assert listed[1:] == ["  $0.00 can be spent", "  alice"]
    assert max(map(len, [*lines, *listed])) <= 80


def test_a_key_s_name_can_t_speak_to_the_terminal(run: Run) -> None:
    """Whoever holds a key names those that it makes; operators list them."""
    run(["accounts", "create", "alice"])
    run(["keys", "create", "alice", "--name", "\x1b]0;owned\x1b\\"])
    listed = run(["keys", "list", "alice"]).out
    assert r"\x1b]0;owned" in listed
    assert "\x1b" not in listed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["credits", "show", "nobody"], "there is no account 'nobody'"),
        (["keys", "revoke", "key_0"], "there is no API key 'key_0'"),
        (["accounts", "create", "alice", "--credits", "ten"], "'ten' is not an amount"),
        (["accounts", "create", "  "], "1 to 200 characters"),
        (["accounts", "create", "x" * 201], "an account's name has 201 characters; allowed: 1 to 200"),
        (["accounts", "create", "\x1b]0;pwn\a"], r"an account's name is '\x1b]0;pwn\x07'; allowed: 1 to 200"),
        (["keys", "create", "alice", "--sync-response", "xml"], "--sync-response"),
        (["keys", "revoke"], "give either KEY_ID or --all-of ACCOUNT"),
        (["keys", "revoke", "key_0", "--all-of", "bob"], "give either KEY_ID or --all-of ACCOUNT"),
        (["keys", "revoke", "--all-of", "nobody"], "there is no account 'nobody'"),
        (["accounts", "limits", "nobody", "--in-flight", "1"], "there is no account 'nobody'"),
        (["accounts", "limits", "bob", "--monthly-cap", "much"], "'much' is not an amount in US dollars"),
        (["accounts", "limits", "bob", "--monthly-cap", "-1"], '--monthly-cap is "-1"; allowed: 0 US dollars or more'),
        (["accounts", "limits", "bob", "--in-flight", "0"], '--in-flight is "0"; allowed: 1 to 100000 edits, or none'),
        (["accounts", "limits", "bob", "--in-flight", "1e3"], '--in-flight is "1e3"; allowed: 1 to 100000 edits'),
        (["accounts", "limits", "bob", "--in-flight", "9" * 5000], "allowed: 1 to 100000 edits, or none"),
        (["credits", "add", "bob", "1e999999"], "'1e999999' is not an amount"),
        (["credits", "add", "bob", "1_5"], "'1_5' is not an amount in US dollars; write it in plain digits"),
        (["credits", "add", "bob", "1000000001"], "'1000000001' is beyond the largest amount"),
        (["keys", "create", "bob", "--name", "x" * 201], "1 to 200 characters, this one has 201"),
        (["keys", "create", "bob", "--requests-per-minute", "3000000000"], "allowed: 1 to 1000000"),
        (
            ["keys", "create", "bob", "--expires-in-days", "1e12"],
            "less than or equal to 36500",
        ),
        (["keys", "create", "bob", "--expires-in-days", "nan"], "'--expires-in-days'"),
        (["keys", "create", "bob", "--expires-in-days", "0"], "--expires-in-days is 0: the key would never open"),
        (["keys", "create", "bob", "--expires-in-days", "1e-12"], "--expires-in-days is 1e-12"),
        (
            ["keys", "create", "bob", "--model", "mini"],
            f'--model is "mini": the key would open no edit; allowed: {SLUG}',
        ),
        (["keys", "create", "bob", "--model", SLUG, "--model", ""], '--model is "": the key'),
    ],
)
def test_an_operator_s_mistake_is_one_line_and_exit_code_2(run: Run, arguments: Sequence[str], says: str) -> None:
    """And the line says what is wrong."""
    run(["accounts", "create", "bob"])
    outcome = run(arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert says in outcome.err


def test_a_command_in_the_wrong_folder_makes_no_database_there(run: Run) -> None:
    """It says where it looked; only opening an account, and serving, begin anew."""
    for arguments in (["accounts", "list"], ["credits", "show", "alice"], ["keys", "create", "alice"]):
        outcome = run(arguments)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert f"there is no database {Path.cwd()}/data/rekontext.db" in outcome.err
    assert not Path("data").exists()
