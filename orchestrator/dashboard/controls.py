"""Pass the user's requests to a run through its folder: set, pin, release, pause, resume."""

import asyncio

from aiohttp import web
from pydantic import ValidationError

from orchestrator.controller.operator import ControlRequest, submit_request
from orchestrator.dashboard.catalog import ROOT, Catalog, UnknownRunError
from orchestrator.dashboard.guard import Handler, holds_token

MAX_BODY_BYTES = 1 << 16


def control_handler(catalog: Catalog, digest: str) -> Handler:
    """Handle a POST of a ControlRequest as JSON: 202 with the id of the request, else an error message."""

    async def control(request: web.Request) -> web.Response:
        if not holds_token(request, digest):
            return _refused(401, "the token is missing or wrong; open the address that the server printed")
        if request.content_type != "application/json":
            return _refused(415, "the request must be JSON")
        try:
            folder = catalog.folder(request.match_info["name"] or ROOT)
            asked = ControlRequest.model_validate_json(await request.read())
            request_id = await asyncio.to_thread(submit_request, folder, asked)
        except UnknownRunError as error:
            return _refused(404, str(error))
        except ValidationError as error:
            faults = [[*map(str, fault["loc"]), fault["msg"].removeprefix("Value error, ")] for fault in error.errors()]
            return _refused(422, "; ".join(map(": ".join, faults)))
        except (ValueError, OSError) as error:
            return _refused(422, str(error))
        return web.json_response({"id": request_id}, status=202)

    return control


def _refused(status: int, why: str) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return web.json_response({"error": why}, status=status, headers=headers)
