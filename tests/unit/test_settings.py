"""Settings from the environment and from flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings, SettingsError, load_settings, unknown_variables, variable_of


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)


def lines(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[str]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    return raised.value.lines


def test_the_names_that_others_rely_on_have_their_defaults() -> None:
    settings = load_settings()
    assert (settings.port, settings.grpc_port, settings.engine) == (8000, 8001, "auto")
    assert settings.model_repository == Path("model_repo")
    assert {"HIERA_HOST", "HIERA_API_KEYS", "HIERA_LOG_FORMAT"} <= {variable_of(name) for name in Settings.model_fields}


def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIERA_PORT", "1234")
    assert load_settings().port == 1234
    assert load_settings({"port": "99"}).port == 99


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIERA_PORT", "")
    assert load_settings().port == 8000


def test_each_wrong_value_has_a_readable_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines(
        monkeypatch, HIERA_PORT="abc", HIERA_ENGINE="x", HIERA_MAX_IMAGE_BYTES="0", HIERA_KEEP_ALIVE_SECONDS="nan"
    )
    assert len(found) == 4
    by_name = {line.partition(" ")[0]: line for line in found}
    assert by_name["HIERA_PORT"].startswith("HIERA_PORT is 'abc', but must be a valid integer")
    assert "'auto', 'onnxruntime'" in by_name["HIERA_ENGINE"]
    assert all("\n" not in line for line in found)


def test_a_wrong_flag_is_named_as_a_flag() -> None:
    with pytest.raises(SettingsError, match="--log-format is 'xml', but must be 'plain' or 'json'"):
        load_settings({"log_format": "xml"})


def test_limits_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, HIERA_MAX_REQUEST_BYTES="5") == [
        "HIERA_MAX_REQUEST_BYTES must be at least HIERA_MAX_IMAGE_BYTES"
    ]


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIERA_API_KEYS", "a:hunter2, b:hunter3")
    settings = load_settings()
    assert settings.api_key_entries == ("a:hunter2", "b:hunter3")
    assert "hunter" not in repr(settings)


@pytest.mark.parametrize("variable", ["HIERA_API_KEYS", "HIERA_ADMIN_KEYS"])
def test_a_list_of_keys_without_a_key_is_refused_rather_than_opening_the_server(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for value in (",", " , ,"):
        (line,) = lines(monkeypatch, **{variable: value})
        assert line.startswith(f"{variable}: lists no key")
    for value in ("", " "):
        monkeypatch.setenv(variable, value)
        settings = load_settings()
        assert settings.api_key_entries == settings.admin_key_entries == ()


@pytest.mark.parametrize(
    "origin",
    [
        "https://a.example/",
        "https://a.example/page",
        "nope",
        "a.example",
        "https://A.example",
        "https://*.example",
        "https://a.example:443",
        "http://a.example:80",
        "https://a.example:",
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    (line,) = lines(monkeypatch, HIERA_CORS_ORIGINS=f"https://b.example, {origin}")
    assert line.startswith("HIERA_CORS_ORIGINS is ")
    assert f"{origin!r} can match no page: an origin is scheme://host[:port]" in line


def test_origins_are_taken_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    origins = ("https://a.example", "http://localhost:3000", "http://[::1]:8080", "chrome-extension://abc", "null", "*")
    monkeypatch.setenv("HIERA_CORS_ORIGINS", ", ".join(origins))
    assert load_settings().cors_origin_list == origins


def test_a_form_is_asked_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, HIERA_ENGINE_DEVICE="gpu", HIERA_OTLP_ENDPOINT="foo") == [
        "HIERA_ENGINE_DEVICE is 'gpu', but must be auto, cpu, cuda, cuda:N, or cuda:0,cuda:1 and more",
        "HIERA_OTLP_ENDPOINT is 'foo', but must be http://host:port or https://host:port",
    ]


@pytest.mark.parametrize("host", ["é" * 300, "\udcff", "a" * 70, "a..b"])
def test_a_host_that_no_name_can_be_is_refused(host: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings({"host": host})
    (line,) = raised.value.lines
    assert line == f"--host is {host!r}, but must be an address or a host name"


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "fe80::1%eth0", "localhost", "münchen.example", "host."])
def test_addresses_and_host_names_are_taken(host: str) -> None:
    assert load_settings({"host": host}).host == host


def test_what_one_request_may_bring_fits_into_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, HIERA_MAX_QUEUE_ROWS="15") == [
        "HIERA_MAX_QUEUE_ROWS must be at least HIERA_MAX_FILES_PER_REQUEST"
    ]
    assert load_settings({"max_queue_rows": 15, "max_files_per_request": 15}).max_queue_rows == 15


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "cuda:0,cuda:1,cuda:2"])
def test_every_form_of_a_device_is_taken(device: str) -> None:
    assert load_settings({"engine_device": device}).engine_device == device


def test_none_means_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIERA_ENGINE_CACHE_FOLDER", "none")
    assert load_settings().engine_cache_folder is None


def test_the_cache_lies_in_the_user_s_cache_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_settings().engine_cache_folder == tmp_path / "hiera-serve"


def test_settings_do_not_change_once_made() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1


def test_a_variable_that_is_no_setting_is_warned_about_with_the_nearest_one() -> None:
    found = unknown_variables(
        {"HIERA_PROT": "1", "HIERA_ZZZ": "1", "HIERA_PORT": "1", "HOME": "/", "HIERA_WEIGHTS_DIR": ""}
    )
    assert found[0] == "HIERA_PROT is no setting and has no effect; did you mean HIERA_PORT?"
    assert len(found) == 2


def test_every_setting_is_explained() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
