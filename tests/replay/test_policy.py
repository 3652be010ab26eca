"""Settings from the environment: what is malformed is said, with what is allowed, and the recording goes on."""

from __future__ import annotations

import os

import pytest

from replay import segments
from replay.policy import Policy


@pytest.fixture
def settings(monkeypatch):
    """Return a function that reads a policy from these settings and no others."""

    def read(**named):
        for name in [name for name in os.environ if name.startswith("FORENSICS_RECORD")]:
            monkeypatch.delenv(name)
        for name, value in named.items():
            monkeypatch.setenv(f"FORENSICS_RECORD_{name}", value)
        return Policy.from_environment()

    return read


def test_the_defaults_keep_everything(settings, capsys):
    assert settings() == Policy(compress=segments.best())
    assert settings(KEEP_MB="", RING_S=" ") == Policy(compress=segments.best())
    assert capsys.readouterr().err == ""


def test_every_setting_is_read(settings, capsys):
    policy = settings(COMPRESS="gzip", SEGMENT_MB="1.5", SEGMENT_S="60", KEEP_MB="100", KEEP_S="off", RING_S="20",
                      TRIGGERS="signal, preemption", SAMPLE="8")  # fmt: skip
    assert policy == Policy("gzip", 1.5, 60.0, 100.0, None, 20.0, ("preemption", "signal"), 8)
    assert capsys.readouterr().err == ""


def test_a_ring_has_the_usual_triggers_and_no_ring_has_none(settings):
    assert settings(RING_S="5").triggers == ("preemption", "regime", "signal")
    assert settings(TRIGGERS="signal").triggers == ()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("COMPRESS", "lz4", "auto, zstd"), ("SEGMENT_MB", "0", "MiB above 0"), ("SEGMENT_MB", "nan", "above 0"),
     ("SEGMENT_S", "-1", "above 0"), ("KEEP_MB", "many", "or off"), ("KEEP_S", "inf", "or off"),
     ("RING_S", "0", "or off"), ("TRIGGERS", "preemption,oom", "thin_margin, preemption"), ("TRIGGERS", ",", "comma"),
     ("SAMPLE", "1.5", "from 1"), ("SAMPLE", "0", "from 1")],
)  # fmt: skip
def test_what_is_malformed_is_said_and_the_default_holds(settings, capsys, name, value, allowed):
    named = {"RING_S": "5", name: value}
    default = settings(**{other: text for other, text in named.items() if other != name})
    assert settings(**named) == default
    said = capsys.readouterr().err
    assert f"FORENSICS_RECORD_{name}={value!r}" in said
    assert allowed in said
    assert said.count("\n") == 1


def test_zstd_where_it_is_not_installed(settings, monkeypatch, capsys):
    monkeypatch.setattr(segments, "_zstandard", lambda: None)
    assert settings(COMPRESS="auto").compress == "gzip"
    assert capsys.readouterr().err == ""
    assert settings(COMPRESS="zstd").compress == "gzip"
    assert "where the module zstandard is installed" in capsys.readouterr().err
