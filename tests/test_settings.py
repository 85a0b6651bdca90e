"""Settings: presets, changes by dotted name, round trip, refusal of what does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from arc_ttt.errors import SettingsError
from arc_ttt.presets import LINEAR_LAYERS, PRESETS, device_preset
from arc_ttt.settings import RunSettings, Settings, TttSettings, parse_overrides

fuzz = hypothesis_settings(max_examples=80, deadline=None, database=None)

LEAVES = [
    f"{section.name}.{leaf.name}"
    for section in dataclasses.fields(Settings)
    for leaf in dataclasses.fields(getattr(Settings(), section.name))
]


def value_of(settings: Settings, name: str) -> Any:
    section, _, leaf = name.partition(".")
    return getattr(getattr(settings, section), leaf)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_valid_and_holds_every_value_that_it_names(preset: str) -> None:
    settings = Settings.of(preset)
    for name, value in PRESETS[preset].items():
        assert value_of(settings, name) == value


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_the_round_trip_through_json(preset: str) -> None:
    settings = Settings.of(preset)
    assert Settings.from_json(settings.to_json()) == settings


@given(
    st.fixed_dictionaries(
        {
            "model.path": st.text(max_size=30),
            "ttt.learning_rate": st.floats(1e-9, 1.0),
            "ttt.targets": st.lists(st.sampled_from(LINEAR_LAYERS), min_size=1, unique=True).map(tuple),
            "ttt.in_context": st.booleans(),
            "run.seed": st.integers(0, 2**63 - 1),
            "run.limit_s": st.floats(5, 1e9),
            "decode.min_probability": st.floats(0, 0.99),
        }
    )
)
@fuzz
def test_any_values_survive_the_round_trip_through_json(changes: dict[str, Any]) -> None:
    settings = Settings().override(changes.items())
    again = Settings.from_json(settings.to_json())
    assert again == settings
    for name, value in changes.items():
        assert value_of(again, name) == value


def test_equal_settings_have_one_text() -> None:
    """The text is part of what a run is known by, so it may not depend on the order of changes."""
    first = Settings().override([("run.seed", 3), ("ttt.rank", 8)])
    second = Settings().override([("ttt.rank", 8), ("run.seed", 3)])
    assert first.to_json() == second.to_json()
    assert first.to_json() != Settings().to_json()


def test_an_override_changes_its_field_and_no_other() -> None:
    settings = Settings().override([("ttt.rank", "8")])
    assert [name for name in LEAVES if value_of(settings, name) != value_of(Settings(), name)] == ["ttt.rank"]
    assert settings.ttt.rank == 8


def test_the_later_of_two_changes_of_one_name_holds() -> None:
    assert Settings().override([("run.seed", "1"), ("run.seed", "2")]).run.seed == 2


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ttt.learnin_rate", "ttt.learning_rate"),
        ("tt.rank", "ttt.rank"),
        ("vote.rules", "vote.rule"),
        ("run.limit", "run.limit_s"),
        ("demonstration_loss", "ttt.demonstration_loss"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(name: str, nearest: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings().override([(name, "1")])
    assert repr(name) in str(caught.value)
    assert nearest in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "ttt", "ttt.", "run.limit_s.x", "reserve", "run.reserve", "__class__.x"])
def test_names_of_no_field_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="no setting"):
        Settings().override([(name, "1")])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ttt.rank", "16", 16),
        ("ttt.rank", "1e2", 100),
        ("ttt.rank", 16.0, 16),
        ("ttt.learning_rate", "1e-4", 1e-4),
        ("ttt.learning_rate", 1, 1.0),
        ("ttt.in_context", "no", False),
        ("ttt.in_context", "TRUE", True),
        ("ttt.in_context", "0", False),
        ("ttt.targets", "q_proj,v_proj", ("q_proj", "v_proj")),
        ("ttt.targets", ["lm_head"], ("lm_head",)),
        ("model.path", "/a b", "/a b"),
        ("run.seed", str(2**63 - 1), 2**63 - 1),
    ],
)
def test_text_becomes_the_type_of_its_field(name: str, text: object, value: object) -> None:
    found = value_of(Settings().override([(name, text)]), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttt.rank", "many"),
        ("ttt.rank", "1.5"),
        ("ttt.rank", 1.5),
        ("ttt.rank", True),
        ("ttt.rank", None),
        ("ttt.rank", "inf"),
        ("ttt.rank", "nan"),
        ("ttt.learning_rate", "fast"),
        ("ttt.learning_rate", None),
        ("ttt.learning_rate", [1]),
        ("ttt.learning_rate", "nan"),
        ("ttt.loss_scale", "nan"),
        ("ttt.loss_scale", "0"),
        ("ttt.loss_scale", "-1"),
        ("ttt.in_context", "maybe"),
        ("ttt.in_context", 2),
        ("ttt.in_context", None),
        ("ttt.targets", 5),
        ("model.path", None),
        ("model.path", ["a"]),
        ("model.format", {"compact": 1}),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: object) -> None:
    """The paper's own command line takes `False` for true (type=bool); every value here means what it says."""
    with pytest.raises(SettingsError, match=name):
        Settings().override([(name, value)])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.format", "json"),
        ("model.backend", "vllm"),
        ("model.quantize", "int8"),
        ("model.dtype", "float8"),
        ("model.max_tokens", 63),
        ("ttt.scope", "some"),
        ("ttt.augment", "all"),
        ("ttt.schedule", "step"),
        ("ttt.adapter", "dora"),
        ("ttt.targets", ""),
        ("ttt.targets", "q_proj,qproj"),
        ("ttt.targets", []),
        ("ttt.epochs", 0),
        ("ttt.max_sequences", 0),
        ("ttt.max_sequence_tokens", 15),
        ("ttt.learning_rate", 0),
        ("ttt.learning_rate", 1.1),
        ("ttt.warmup_fraction", -0.1),
        ("ttt.clip_norm", 0),
        ("decode.views", 0),
        ("decode.rule", "random"),
        ("decode.min_probability", 1.0),
        ("vote.rule", "best"),
        ("vote.max_scored", 1),
        ("run.limit_s", 4.9),
        ("run.limit_s", "nan"),
        ("run.workers", -1),
        ("run.threads", 0),
        ("run.seed", -1),
        ("run.seed", 2**63),
    ],
)
def test_a_value_out_of_its_bounds_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings().override([(name, value)])


def test_a_reserve_that_leaves_no_time_contradicts_the_limit() -> None:
    with pytest.raises(SettingsError, match=r"run\.reserve_s"):
        Settings().override([("run.limit_s", "60"), ("run.reserve_s", "58")])
    settings = Settings().override([("run.reserve_s", "58"), ("run.limit_s", "600")])
    assert settings.run.reserve == 58


def test_a_shorter_limit_is_checked_against_a_reserve_set_before() -> None:
    settings = Settings().override([("run.limit_s", "600"), ("run.reserve_s", "100")])
    with pytest.raises(SettingsError, match=r"run\.reserve_s"):
        settings.override([("run.limit_s", "60")])


@pytest.mark.parametrize(("limit_s", "reserve_s"), [(5, 3), (60, 3), (300, 7.1), (3600, 72), (43200, 300), (1e6, 300)])
def test_the_reserve_follows_the_limit_where_none_is_set(limit_s: float, reserve_s: float) -> None:
    assert RunSettings(limit_s=limit_s).reserve == pytest.approx(reserve_s)


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().ttt.rank = 1  # type: ignore[misc]


def test_there_is_no_other_preset() -> None:
    with pytest.raises(SettingsError, match="embedded"):
        Settings.of("llama-70b")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "5", "null", '"ttt"', '{"ttt": 5}', '{"ttt": {"rnk": 1}}', '{"x": {"y": 1}}', '{"ttt": [1]}'],
)
def test_text_that_is_no_set_of_settings_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        Settings.from_json(text)


def test_a_set_of_settings_that_holds_a_wrong_value_is_refused() -> None:
    sections = json.loads(Settings().to_json())
    sections["vote"]["rule"] = "loudest"
    with pytest.raises(SettingsError, match=r"vote\.rule"):
        Settings.from_json(json.dumps(sections))


def test_overrides_of_the_command_line() -> None:
    assert parse_overrides(["run.seed=5", "model.path = a=b"]) == [("run.seed", "5"), ("model.path", "a=b")]
    with pytest.raises(SettingsError, match="NAME=VALUE"):
        parse_overrides(["run.seed"])


def test_the_paper_presets_mask_the_first_output_and_keep_its_caps() -> None:
    for preset in ("llama-1b-3b", "llama-8b"):
        ttt = Settings.of(preset).ttt
        assert (ttt.augment, ttt.first_output_loss, ttt.max_sequences, ttt.max_sequence_tokens) == (
            "paper",
            False,
            250,
            8192,
        )
        assert (ttt.epochs, ttt.batch_sequences, ttt.rank, ttt.alpha, ttt.rslora) == (2, 2, 128, 16.0, False)
    assert Settings.of("llama-1b-3b").ttt.learning_rate == 5e-5
    assert Settings.of("llama-8b").ttt.learning_rate == 1e-4
    assert math.isclose(TttSettings().learning_rate, Settings.of("embedded").ttt.learning_rate)


def test_a_reserve_that_is_too_short_is_raised_and_said_so() -> None:
    run = RunSettings(limit_s=43200, reserve_s=10)
    assert run.reserve == pytest.approx(62.1)
    assert "run.reserve_s=10" in run.reserve_raised
    assert RunSettings(limit_s=43200, reserve_s=100).reserve_raised == ""
    assert RunSettings(limit_s=300).reserve_raised == ""  # none was asked for


# Devices


@pytest.mark.parametrize(
    ("capability", "preset", "dtype"),
    [((7, 5), "t4", "float16"), ((7, 0), "t4", "float16"), ((8, 0), "l4", "bfloat16"), ((8, 9), "l4", "bfloat16")],
)
def test_the_device_preset_follows_the_capability(capability: tuple[int, int], preset: str, dtype: str) -> None:
    assert device_preset(capability) == preset
    settings = Settings.of("llama-3b").on_device(capability)
    assert settings.model.dtype == dtype
    assert settings.ttt.loss_scale == Settings().ttt.loss_scale == 1024.0


def test_a_compute_type_of_ones_own_stays() -> None:
    chosen = Settings().override([("model.dtype", "float32"), ("ttt.loss_scale", 8.0)])
    assert chosen.on_device((7, 5)) == chosen


@pytest.mark.parametrize("name", ["llama-1b", "llama-3b", "llama-1b-3b", "llama-8b"])
def test_llama_presets_leave_the_micro_batch_to_the_memory_plan(name: str) -> None:
    assert Settings.of(name).ttt.micro_batch_tokens == 0
    with pytest.raises(SettingsError, match="micro_batch_tokens"):
        Settings.of(name).override([("ttt.micro_batch_tokens", 8)])
