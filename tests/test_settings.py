"""Settings come from flags, variables and .env, in that order; a wrong one is said by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rekontext.settings import PREFIX, Settings, SettingsError, load_settings, unknown_names, variable


@pytest.fixture(autouse=True)
def clean_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no .env but the test's own."""
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults() -> None:
    """A machine where nothing is set serves the embedded model on loopback."""
    settings = load_settings()
    assert (settings.model, settings.host, settings.port) == ("mini", "127.0.0.1", 8000)


def test_a_flag_beats_a_variable_beats_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearer the source, the more it counts; a flag that was not given counts nothing."""
    Path(".env").write_text("REKONTEXT_PORT=1\nREKONTEXT_HOST=a\nREKONTEXT_MODEL=from-dotenv\nOTHER=x\n")
    monkeypatch.setenv("REKONTEXT_PORT", "2")
    monkeypatch.setenv("REKONTEXT_HOST", "b")
    settings = load_settings(port=3, host=None)
    assert (settings.port, settings.host, settings.model) == (3, "b", "from-dotenv")


def test_a_data_folder_at_home_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell reads .env; a `~` left as it is would be a folder of that name, wherever the service is started."""
    monkeypatch.setenv("HOME", "/home/anna")
    Path(".env").write_text("REKONTEXT_DATA_DIR=~/kept\n")
    assert load_settings().data_dir == Path("/home/anna/kept")
    monkeypatch.setenv("REKONTEXT_DATA_DIR", "~nobody-here/kept")
    assert load_settings().data_dir == Path("~nobody-here/kept")


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """`REKONTEXT_DEVICE=` leaves the default."""
    monkeypatch.setenv("REKONTEXT_DEVICE", "")
    monkeypatch.setenv("REKONTEXT_PORT", "")
    assert (load_settings().device, load_settings().port) == ((), 8000)


def test_bodies_have_room_for_the_largest_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """One caller gets half of it; without a word it grows with the largest."""
    assert load_settings().bodies_bytes == 16 * 32 * 2**20
    assert load_settings(body_bytes_max=10_000).bodies_bytes == 160_000
    assert load_settings(body_bytes_max=10_000, bodies_bytes_max=20_000).bodies_bytes == 20_000
    monkeypatch.setenv("REKONTEXT_BODIES_BYTES_MAX", "67108863")
    with pytest.raises(SettingsError, match=r"REKONTEXT_BODIES_BYTES_MAX is \"67108863\".*at least 67108864"):
        load_settings()


@pytest.mark.parametrize(("records_s", "kept"), [(60, (60, 60)), (7200, (3600, 7200)), (10**6, (3600, 7 * 86_400))])
def test_pictures_are_not_kept_longer_than_what_knows_of_them(records_s: int, kept: tuple[int, int]) -> None:
    """Whoever keeps records for a day keeps prompts no longer, though results may be kept for a week."""
    settings = load_settings(keep_records_s=records_s)
    assert (settings.inputs_s, settings.outputs_s) == kept
    assert settings.idempotency_s == min(records_s, 86_400), "a key goes with its job's record"


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks and hosts that may be fetched."""
    monkeypatch.setenv("REKONTEXT_FETCH_ALLOW", "10.0.0.0/8, files.internal,")
    assert load_settings().fetch_allow == ("10.0.0.0/8", "files.internal")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("REKONTEXT_PORT", "eighty", 'REKONTEXT_PORT is "eighty", which is wrong'),
        ("REKONTEXT_PORT", "65536", "less than or equal to 65535"),
        ("REKONTEXT_DEVICE", "tpu", '"tpu" is no device; allowed are cpu, cuda, cuda:N, several of them'),
        ("REKONTEXT_DEVICE", "all, cpu", '"all" is no device'),
        ("REKONTEXT_DEVICE", "none, cpu", '"none" is no device'),
        ("REKONTEXT_DEVICE", "cuda:0, cuda", "cuda:0 is in it twice"),
        ("REKONTEXT_IDLE_S", "0", "REKONTEXT_IDLE_S"),
        ("REKONTEXT_DTYPE", "float16", "'float32', 'bfloat16' or 'fp8'"),
        ("REKONTEXT_QUEUE_MAX", "0", "REKONTEXT_QUEUE_MAX"),
        ("REKONTEXT_DEADLINE_S", "nan", "REKONTEXT_DEADLINE_S"),
        ("REKONTEXT_PICTURE_PIXELS_MAX", "999999999", "89000000"),
        ("REKONTEXT_FETCH_ALLOW", "10.0.0.0/99", '"10.0.0.0/99" is no network'),
        ("REKONTEXT_TRUSTED_PROXIES", "proxy.internal", '"proxy.internal" is no network'),
        ("REKONTEXT_EXTERNAL_URL", "https://example.com/path", "an origin such as"),
        ("REKONTEXT_EXTERNAL_URL", "example.com", "an origin such as"),
        ("REKONTEXT_EXTERNAL_URL", "https://example.com:99999", "an origin such as"),
        ("REKONTEXT_EXTERNAL_URL", "https://user@example.com", "an origin such as"),
        ("REKONTEXT_EXTERNAL_URL", "http://[", "an origin such as"),
        ("REKONTEXT_STORE_URL", "ftp://x", "allowed are file:///FOLDER, s3://BUCKET"),
        ("REKONTEXT_STORE_URL", "s3://", "allowed are file:///FOLDER, s3://BUCKET"),
        ("REKONTEXT_PRICE_PER_EDIT_USD", "0.0000001", "REKONTEXT_PRICE_PER_EDIT_USD"),
        ("REKONTEXT_FIRST_CREDITS_USD", "-1", "greater than or equal to 0"),
        ("REKONTEXT_SECRET", "short", "at least 32"),
        ("REKONTEXT_PROT", "80", "REKONTEXT_PROT is no setting; did you mean REKONTEXT_PORT?"),
        ("REKONTEXT_WIBBLE_QUUX", "80", "the settings are REKONTEXT_DATA_DIR"),
    ],
)
def test_a_wrong_variable_is_said_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    """One line that names the variable and what is allowed."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start-up messages end in logs."""
    monkeypatch.setenv("REKONTEXT_SECRET", "geheim")
    with pytest.raises(SettingsError, match="REKONTEXT_SECRET is wrong: it has 6 characters") as caught:
        load_settings()
    assert "geheim" not in str(caught.value)


def test_a_wrong_flag_is_named_as_a_flag() -> None:
    """People look where they typed."""
    with pytest.raises(SettingsError, match=r"--port is -1, which is wrong"):
        load_settings(port=-1)


def test_several_wrong_settings_are_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One start is enough to learn of all of them."""
    monkeypatch.setenv("REKONTEXT_PORT", "x")
    monkeypatch.setenv("REKONTEXT_DTYPE", "y")
    with pytest.raises(SettingsError, match=r"REKONTEXT_DTYPE.*REKONTEXT_PORT|REKONTEXT_PORT.*REKONTEXT_DTYPE"):
        load_settings()


def test_a_slip_of_the_pen_in_dotenv_is_found() -> None:
    """.env is read as strictly as the environment."""
    Path(".env").write_text("REKONTEXT_MODLE=x\n")
    with pytest.raises(SettingsError, match="did you mean REKONTEXT_MODEL"):
        load_settings()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('A=1\n\n# b\nREKONTEXT_DATABASE_URL="postgresql://geheim\nB=2\n', "line 4 of "),
        ("REKONTEXT_SECRET='geheim\n", "line 1 of "),
        ('REKONTEXT_SECRET="geheim"geheim\n', "line 1 of "),
        ("REKONTEXT_SECRET geheim\n", "line 1 of "),
        ('A="geheim\nREKONTEXT_DATABASE_URL="geheim"\n', "line 1 of "),
        ('A=1\n\n\nB="geheim\nREKONTEXT_MODEL="\n', "value at line 4 of "),
        ("A='geheim\nexport REKONTEXT_MODEL=x'\n", "value at line 1 of "),
    ],
)
def test_a_line_of_dotenv_that_would_be_left_out_stops_the_start(content: str, says: str) -> None:
    """Else a service starts on another database than it was told. The line isn't shown: it may hold a secret."""
    Path(".env").write_text(content)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert says in str(caught.value)
    assert str(Path(".env").absolute()) in str(caught.value)
    assert "geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dotenv_may_have_what_others_put_there() -> None:
    """Comments, exports, quotes, and other programs' values over several lines."""
    lines = [
        "# a comment",
        "",
        'export REKONTEXT_PORT="81"  # mine',
        "REKONTEXT_HOST='b'",
        'KEY="-----BEGIN',
        "abc=",
        '-----END"',
        "REKONTEXT_MODEL=it's",
    ]
    Path(".env").write_text("\n".join(lines))
    settings = load_settings()
    assert (settings.port, settings.host, settings.model) == (81, "b", "it's")


def test_every_setting_has_a_variable() -> None:
    """No field is out of reach, and only ours are taken."""
    names = [variable(name) for name in Settings.model_fields]
    assert unknown_names([*names, "PATH", "REKONTEXTS", "REKONTEXT_KEY"]) == []
    assert unknown_names(["rekontext_x"]) == ["REKONTEXT_X"]
