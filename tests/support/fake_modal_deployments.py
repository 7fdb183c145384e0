"""What the fake control plane needs for deployed apps: names, the web function's address, and a container of it.

A real container is given requests by Modal's proxy. Here it is given none: it imports the function, runs its body and
waits for the port, as Modal's entrypoint does, and tests ask that port themselves.
"""

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from fake_modal import Call, FakeModal, Task


class FakeDeployments(FakeModal):
    """See the module."""

    def __init__(self, folder: Path, secrets: dict[str, dict[str, str]], container_env: dict[str, str]) -> None:
        super().__init__(folder, secrets, container_env)
        self.deployed: dict[str, str] = {}

    def start_web(self) -> tuple[Task, int]:
        """Start a container of the function that was created last; returns it and the port of its server."""
        function_id, function = list(self.functions.items())[-1]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = int(taken.getsockname()[1])
        function.webhook_config.web_server_port = port
        call = Call("fc-web", function_id, "ap-1", api_pb2.FunctionInput(), api_pb2.FunctionRetryPolicy(), time.time())
        call.output = api_pb2.FunctionGetOutputsItem()  # nobody waits for one
        options = api_pb2.FunctionOptions(secret_ids=function.secret_ids)
        self.calls[call.id], self.variants[function_id] = call, (function_id, options)
        self.container_env = {**self.container_env, "FAKE_WEB_PORT": str(port)}
        asyncio.run_coroutine_threadsafe(self._begin(call), self.loop).result(30)
        return self.wait_for(lambda: call.tasks and call.tasks[0]), port

    async def _begin(self, call: Call) -> None:
        self._later(self._start(call))

    async def AppGetByDeploymentName(self, request: Any, task: Task | None) -> Message:
        return api_pb2.AppGetByDeploymentNameResponse(app_id=self.deployed.get(request.name, ""))

    async def AppGetLayout(self, request: Any, task: Task | None) -> Message:
        return api_pb2.AppGetLayoutResponse(app_layout=api_pb2.AppLayout())

    async def AppGetOrCreate(self, request: Any, task: Task | None) -> Message:
        if request.app_name not in self.deployed:
            raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' not found")
        return api_pb2.AppGetOrCreateResponse(app_id=self.deployed[request.app_name])

    async def AppPublish(self, request: Any, task: Task | None) -> Message:
        if request.app_state == api_pb2.APP_STATE_DEPLOYED:
            self.deployed[request.name] = request.app_id
            self.apps[request.app_id] = request.app_state
        return api_pb2.AppPublishResponse(url="page", deployed_at=time.time())

    async def AppStop(self, request: Any, task: Task | None) -> Message:
        self.apps[request.app_id] = api_pb2.APP_STATE_STOPPED
        self.deployed = {name: app_id for name, app_id in self.deployed.items() if app_id != request.app_id}
        return Empty()

    async def SecretGetOrCreate(self, request: Any, task: Task | None) -> Message:
        if not request.env_dict:
            return await super().SecretGetOrCreate(request, task)
        name = self._new_id("env")
        self.secrets = {**self.secrets, name: dict(request.env_dict)}
        request.deployment_name = name
        return await super().SecretGetOrCreate(request, task)

    async def FunctionGetInputs(self, request: Any, task: Task | None) -> Message:
        assert task is not None
        if task.call.id != "fc-web":
            return await super().FunctionGetInputs(request, task)
        await asyncio.sleep(3600)
        return api_pb2.FunctionGetInputsResponse()

    def _metadata(self, function_id: str) -> api_pb2.FunctionHandleMetadata:
        found = super()._metadata(function_id)
        if function_id in self.functions and self.functions[function_id].HasField("webhook_config"):
            found.function_name = self.functions[function_id].function_name
            found.web_url = "https://workspace--strop-run-serve.modal.run"
        return found
