"""Keys that lie in Prefect Secret blocks: `stillhouse flows deploy --secret OPENAI_API_KEY=openai-api-key`.

A run finds a key in the environment of its process. A deployment says which block the value is in, and the worker looks it
up when it starts the run, so the key stands in no deployment and no parameter. The reference is given after `prefect
deploy`, which looks up what it finds in its file and would keep the key itself, in plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound

from stillhouse.errors import RecipeError
from stillhouse_flows.definitions import Definitions, flow_of

_SECRET = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=([a-z0-9-]+)")


def secrets_from(given: Sequence[str]) -> dict[str, str]:
    """Environment variable -> name of its block, of `VARIABLE=BLOCK`.

    Raises:
        RecipeError: one is not of that form; what it says is not repeated, for it may be a key.
    """
    found = [_SECRET.fullmatch(one) for one in given]
    if None in found:
        raise RecipeError(
            "--secret is not of the form VARIABLE=BLOCK: give the environment variable that the recipe reads and the name "
            "of a Prefect Secret block (small letters, digits, dashes), never the key itself: OPENAI_API_KEY=openai-api-key"
        )
    return {one[1]: one[2] for one in found if one is not None}


async def check_blocks(client: PrefectClient, secrets: Mapping[str, str]) -> None:
    """Look whether the server has the blocks.

    Raises:
        RecipeError: it lacks one.
    """
    for variable, block in secrets.items():
        try:
            await client.read_block_document_by_name(block, "secret", include_secrets=False)
        except ObjectNotFound as error:
            raise RecipeError(
                f"--secret names the block {block!r} for {variable}, and the server has no Secret block of that name: make "
                "it on the server's page under Blocks, or as docs/operations.md shows"
            ) from error


async def refer_to_blocks(client: PrefectClient, definitions: Definitions, secrets: Mapping[str, str]) -> None:
    """Let the worker look up the blocks for every run of the deployments."""
    references = {variable: f"{{{{ prefect.blocks.secret.{block} }}}}" for variable, block in secrets.items()}
    for entry in definitions.deployments if secrets else []:
        deployment = await client.read_deployment_by_name(f"{flow_of(entry).name}/{entry['name']}")
        variables = dict(deployment.job_variables or {})
        variables["env"] = {**variables.get("env", {}), **references}
        answer = await client.request(
            "PATCH", "/deployments/{id}", path_params={"id": deployment.id}, json={"job_variables": variables}
        )
        answer.raise_for_status()
