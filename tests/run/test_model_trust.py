"""When a model is given up, and what the successors of a dead worker do without. No process is started."""

from __future__ import annotations

import pytest

from arc_ttt.protocol.jobs import DeathKind
from arc_ttt.run.model_trust import MODEL_DEATHS, MODEL_TRIES, ModelTrust, Remedy

ITS_OWN = [kind for kind in DeathKind if kind.is_its_own]


@pytest.mark.parametrize("kind", ITS_OWN)
def test_a_death_while_loading_costs_the_trials_and_a_lost_device_the_recordings(kind: DeathKind) -> None:
    want = Remedy.NO_RECORDING if kind is DeathKind.DEVICE_LOST else Remedy.NO_TRIALS
    assert ModelTrust(has_fallback=True).died(0, kind, [0, 1], was_ready=False) is want


@pytest.mark.parametrize("kind", [kind for kind in DeathKind if not kind.is_its_own])
def test_what_others_did_to_a_worker_costs_nothing(kind: DeathKind) -> None:
    trust = ModelTrust(has_fallback=True)
    assert [trust.died(0, kind, [0], was_ready=False) for _ in range(9)] == [Remedy.KEEP] * 9


def test_a_model_is_given_up_after_enough_deaths_and_enough_tries_of_every_device() -> None:
    trust = ModelTrust(has_fallback=True)
    alone = [trust.died(0, DeathKind.CRASHED, [0, 1], was_ready=False) for _ in range(MODEL_DEATHS + 2)]
    assert Remedy.GIVE_UP not in alone  # the other device may still load it
    other = [trust.died(1, DeathKind.SILENT, [0, 1], was_ready=False) for _ in range(MODEL_TRIES)]
    assert other[-1] is Remedy.GIVE_UP
    assert Remedy.GIVE_UP not in other[:-1]


def test_a_single_device_needs_all_the_deaths() -> None:
    trust = ModelTrust(has_fallback=True)
    found = [trust.died(0, DeathKind.CRASHED, [0], was_ready=False) for _ in range(MODEL_DEATHS)]
    assert found == [Remedy.NO_TRIALS] * (MODEL_DEATHS - 1) + [Remedy.GIVE_UP]


def test_a_model_that_one_worker_has_loaded_is_kept_whatever_the_others_do() -> None:
    trust = ModelTrust(has_fallback=True)
    trust.loaded()
    assert Remedy.GIVE_UP not in [trust.died(0, DeathKind.CRASHED, [0, 1], was_ready=False) for _ in range(20)]
    assert [trust.refused(slot, [0, 1]) for slot in (0, 1)] == [Remedy.KEEP] * 2


def test_a_worker_that_dies_at_work_says_nothing_about_the_model() -> None:
    trust = ModelTrust(has_fallback=True)
    assert {trust.died(0, DeathKind.CRASHED, [0], was_ready=True) for _ in range(20)} == {Remedy.KEEP}


def test_all_devices_must_refuse_a_model_and_lost_ones_do_not_count() -> None:
    trust = ModelTrust(has_fallback=False)
    assert trust.refused(0, [0, 1]) is Remedy.KEEP
    assert trust.refused(0, [0]) is Remedy.GIVE_UP  # the other device is lost meanwhile


def test_the_last_model_is_never_given_up_for_deaths_and_counts_anew() -> None:
    trust = ModelTrust(has_fallback=True)
    trust.refused(0, [0, 1])
    trust.next_model()
    assert (trust.generation, trust.has_fallback) == (1, False)
    assert trust.refused(1, [0, 1]) is Remedy.KEEP  # the refusal of the first model is forgotten
    assert Remedy.GIVE_UP not in [trust.died(0, DeathKind.CRASHED, [0], was_ready=False) for _ in range(20)]
