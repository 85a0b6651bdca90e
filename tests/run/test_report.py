"""The report of a run: what it says is what happened, and a person can read it."""

from __future__ import annotations

import json

import pytest

from arc_ttt.run.report import ACCOUNTS, Ledger, RunResult, report_lines, run_report


@pytest.fixture
def result() -> RunResult:
    ledger = Ledger([0, 1], 100.0)
    ledger.spend(0, 110.0, "load")
    ledger.spend(0, 150.0, "decode", {"train": 30.0, "compile": 4.0})
    ledger.spend(0, 190.0, "killed")
    ledger.spend(1, 190.0, "idle")
    for device in (0, 1):
        ledger.spend(device, 200.0, "reserve")
    ledger.spend(7, 500.0, "train")  # a worker of synthesis: it is no device
    return RunResult(
        seconds=91.0,
        limit_s=100.0,
        reserve_s=10.0,
        workers=2,
        stopped_by="deadline",
        deaths=["signal 9", "silent for 60 s", "signal 9"],
        ratios={"ttt": [0.5, 1.0, 2.0]},
        cut=["b", "b"],
        degraded=["é"],
        quarantined=list("fedcba"),
        write_errors=1,
        ledger=ledger,
    )


def test_the_time_of_each_device_is_split_and_adds_up(result: RunResult) -> None:
    report = run_report(result)
    seconds = report["device_seconds"]
    split = {"train": 30.0, "decode": 6.0, "load": 10.0, "compile": 4.0, "killed": 40.0, "idle": 0.0, "reserve": 10.0}
    assert seconds["0"] == split
    assert seconds["1"] == dict.fromkeys(ACCOUNTS, 0.0) | {"idle": 90.0, "reserve": 10.0}
    assert set(seconds) == {"0", "1"}
    assert report["shares"]["train"] == pytest.approx(0.15)
    assert sum(report["shares"].values()) == pytest.approx(1.0)


def test_the_report_is_json_with_causes_and_tasks_once_each(result: RunResult) -> None:
    report = json.loads(json.dumps(run_report(result)))
    assert report["slack_s"] == 9.0
    assert report["restarts"] == {"signal 9": 2, "silent for 60 s": 1}
    assert report["cut"] == ["b"]
    assert report["quarantined"] == list("abcdef")
    assert report["actual_by_predicted"]["ttt"] == {"jobs": 3, "p50": 1.0, "p90": 1.8, "p99": 1.98}


def test_the_closing_table_tells_it_in_words(result: RunResult) -> None:
    text = "\n".join(report_lines(run_report(result)))
    for words in (
        "1m31s, 91% of the limit, ended by: deadline",
        "9s to spare",
        "workers lost: 3: signal 9 (2), silent for 60 s (1)",
        "cut: 1 tasks (b)",
        "degraded: 1 tasks (\\xe9)",
        "quarantined: 6 tasks (a, b, c, d, e, ...)",
        "could not be replaced 1 times",
        *ACCOUNTS,
    ):
        assert words in text


def test_a_run_without_devices_or_jobs_has_a_report_too() -> None:
    lines = report_lines(run_report(RunResult(seconds=1.0, limit_s=10.0)))
    assert len(lines) == 1
