"""The guard and runs that end by themselves: their last event comes after their heartbeats, so the guard waits no more."""

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
    assert event["resource"]["prefect.resource.id"] == f"prefect.flow-run.{run.id}"
    for watch in (recovery._BEGUN, recovery._TAKEN):
        automation = watch.build(watch.seconds)
        trigger = EventTrigger.model_validate(automation.trigger.model_dump())
        assert trigger.expects(event["event"]) and not trigger.starts_after(event["event"])
        assert trigger.match.matches(event["resource"])
        assert any(trigger.match_related.matches(one) for one in event["related"])  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_guard_leaves_a_short_run_alone(
    prefect_server: PrefectServer, scripted_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """It ends before its first heartbeat arrives."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(scripted_recipe().as_yaml())
    for more in (["flows", "guard", "--after", "35"], ["label", str(recipe), "--flow"]):
        command = [sys.executable, "-m", "stillhouse", *more]
        done = subprocess.run(command, cwd=ROOT, env=prefect_server.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    ended = _ids(prefect_server, "prefect.flow-run.ended")
    assert len(ended) == 1
    assert ended[0] in _ids(prefect_server, "prefect.flow-run.heartbeat")
    time.sleep(60)  # longer than the guard waits
    acted = _events(prefect_server, "prefect.automation.action.triggered")
    assert [one for one in acted if ended[0] in str(one)] == []


def _ids(server: PrefectServer, name: str) -> list[str]:
    """The runs that events of a name are of, once there are any."""
    until = time.monotonic() + 60
    while not (found := _events(server, name)) and time.monotonic() < until:
        time.sleep(0.5)
    return [one["resource"]["prefect.resource.id"] for one in found]


def _events(server: PrefectServer, name: str) -> list[dict[str, Any]]:
    import httpx

    asked = {"filter": {"event": {"name": [name]}, "order": "DESC"}, "limit": 50}
    return list(httpx.post(f"{server.url}/events/filter", json=asked).json()["events"])
