"""The guard and runs that end by themselves: their last event comes after their heartbeats, so the guard waits no more."""

import asyncio
import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import MakeRecipe
from tests.flows.conftest import ROOT, PrefectServer


def our_flows() -> list[Any]:
    from stillhouse_flows.distill import distill_flow
    from stillhouse_flows.evaluate import evaluate_flow
    from stillhouse_flows.finetune import finetune_flow
    from stillhouse_flows.label import label_flow
    from stillhouse_flows.run import run_flow

    return [finetune_flow, label_flow, distill_flow, evaluate_flow, run_flow]


def test_every_flow_that_is_guarded_tells_its_end_however_it_ends() -> None:
    from stillhouse_flows.common import emit_ended_event
    from stillhouse_flows.recovery import FLOWS

    assert [flow.name for flow in our_flows()] == FLOWS
    for flow in our_flows():
        for hooks in ("on_completion", "on_failure", "on_crashed", "on_cancellation"):
            assert emit_ended_event in getattr(flow, f"{hooks}_hooks")


def test_the_last_event_is_one_that_the_guard_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.server.events.schemas.automations import EventTrigger

    from stillhouse_flows import common, recovery

    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(common, "emit_event", lambda **event: sent.append(event))
    run = SimpleNamespace(id=uuid4(), name="label words", flow_id=uuid4())
    common.emit_ended_event(our_flows()[1], run, SimpleNamespace(name="Completed"))  # type: ignore[arg-type]
    (event,) = sent
    assert "prefect.flow-run.Running" in recovery._BEGUN.events  # its process may be killed before its first heartbeat
    assert event["resource"]["prefect.resource.id"] == f"prefect.flow-run.{run.id}"
    for watch in (recovery._BEGUN, recovery._TAKEN):
        automation = watch.build(watch.seconds)
        trigger = EventTrigger.model_validate(automation.trigger.model_dump())
        assert trigger.expects(event["event"]) and not trigger.starts_after(event["event"])
        assert trigger.match.matches(event["resource"])
        assert any(trigger.match_related.matches(one) for one in event["related"])  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_guard_of_an_earlier_version_learns_and_keeps_what_was_chosen(prefect_api: None) -> None:
    from prefect.client.orchestration import get_client

    from stillhouse_flows import recovery

    async def registered() -> Any:
        earlier = dataclasses.replace(recovery._BEGUN, name="earlier", events=frozenset({"prefect.flow-run.heartbeat"}))
        now = dataclasses.replace(recovery._BEGUN, name="earlier")
        disabled = earlier.build(77)
        disabled.enabled = False
        async with get_client() as client:
            await client.create_automation(disabled)
            for _ in range(2):
                await recovery._register(client, now)
            return await client.read_automations_by_name("earlier")

    (automation,) = asyncio.run(registered())
    assert automation.trigger.after == recovery._BEGUN.events
    assert automation.trigger.within.total_seconds() == 77
    assert not automation.enabled


@pytest.mark.slow
def test_the_guard_leaves_a_short_run_alone(
    prefect_server: PrefectServer, scripted_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """It ends before its first heartbeat arrives."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(scripted_recipe(name="guarded").as_yaml())
    for more in (["flows", "guard", "--after", "35"], ["label", str(recipe), "--flow"]):
        command = [sys.executable, "-m", "stillhouse", *more]
        done = subprocess.run(command, cwd=ROOT, env=prefect_server.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    run = _run_of(prefect_server, "label guarded words/v001")
    assert _is_told(prefect_server, "prefect.flow-run.ended", run)
    assert _is_told(prefect_server, "prefect.flow-run.heartbeat", run)
    time.sleep(45)  # longer than the guard waits
    acted = _events(prefect_server, "prefect.automation.action.triggered")
    assert [one for one in acted if run in str(one)] == []


def _run_of(server: PrefectServer, name: str) -> str:
    """The one run of a name; earlier tests of the same server left others, whose events may still arrive."""
    import httpx

    asked = {"flow_runs": {"name": {"any_": [name]}}}
    (run,) = httpx.post(f"{server.url}/flow_runs/filter", json=asked).json()
    return f"prefect.flow-run.{run['id']}"


def _is_told(server: PrefectServer, name: str, run: str) -> bool:
    """Whether an event of a name is of a run, after at most a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if any(one["resource"]["prefect.resource.id"] == run for one in _events(server, name)):
            return True
        time.sleep(0.5)
    return False


def _events(server: PrefectServer, name: str) -> list[dict[str, Any]]:
    import httpx

    asked = {"filter": {"event": {"name": [name]}, "order": "DESC"}, "limit": 50}
    return list(httpx.post(f"{server.url}/events/filter", json=asked).json()["events"])
