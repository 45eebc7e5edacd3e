"""API keys in Prefect Secret blocks: `stillhouse flows deploy --secret OPENAI_API_KEY=openai-api-key`.

A run reads a key from its environment. A deployment names the block of the value, and the worker reads it when it starts
the run, so the key is in no deployment and no parameter. The reference is added after `prefect deploy`, which would resolve
it and store the key itself in plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound

from stillhouse.errors import RecipeError
from stillhouse_flows.definitions import Definitions, load_flow

_SECRET = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=([a-z0-9-]+)")


def parse_secrets(given: Sequence[str]) -> dict[str, str]:
    """Parse `VARIABLE=BLOCK` into {environment variable: name of its block}.

    Raises:
        RecipeError: a secret does not have this form; the message does not repeat it, since it may be a key.
    """
    found = [_SECRET.fullmatch(one) for one in given]
    if None in found:
        raise RecipeError(
            "it does not have the form VARIABLE=BLOCK",
            setting="--secret",
            fix="give the environment variable that the recipe reads and the name of a Prefect Secret block (lower-case "
            "letters, digits, dashes), never the key itself: OPENAI_API_KEY=openai-api-key",
        )
    return {one[1]: one[2] for one in found if one is not None}


async def check_blocks(client: PrefectClient, secrets: Mapping[str, str]) -> None:
    """Check that the server has the blocks.

    Raises:
        RecipeError: the server lacks a block.
    """
    for variable, block in secrets.items():
        try:
            await client.read_block_document_by_name(block, "secret", include_secrets=False)
        except ObjectNotFound as error:
            raise RecipeError(
                "the server has no Secret block of that name",
                setting="--secret",
                value=f"{variable}={block}",
                fix="create the block on the server's page under Blocks, or as docs/operations.md shows",
            ) from error


async def refer_to_blocks(client: PrefectClient, definitions: Definitions, secrets: Mapping[str, str]) -> None:
    """Add references to the blocks to the deployments, which the worker resolves for every run."""
    references = {variable: f"{{{{ prefect.blocks.secret.{block} }}}}" for variable, block in secrets.items()}
    for entry in definitions.deployments if secrets else []:
        deployment = await client.read_deployment_by_name(f"{load_flow(entry).name}/{entry['name']}")
        variables = dict(deployment.job_variables or {})
        variables["env"] = {**variables.get("env", {}), **references}
        answer = await client.request(
            "PATCH", "/deployments/{id}", path_params={"id": deployment.id}, json={"job_variables": variables}
        )
        answer.raise_for_status()
