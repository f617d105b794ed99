"""What a person is told of a cluster that is gone."""

import asyncio
from collections.abc import Callable

import aiohttp
import pytest
import requests

from orchestrator.cluster.jobs.client import JobError, cluster_errors

NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there


def ask() -> None:
    requests.get(NOBODY, timeout=5)


def follow_a_log() -> None:
    async def go() -> None:
        async with aiohttp.ClientSession() as session:
            await session.ws_connect(NOBODY)

    asyncio.run(go())


@pytest.mark.parametrize("call", [ask, follow_a_log])
def test_a_cluster_that_went_away_is_told_in_a_line(call: Callable[[], None]) -> None:
    with (
        pytest.raises(JobError, match=r"^http://head:8265: no Ray dashboard answers there"),
        cluster_errors("http://head:8265"),
    ):
        call()
