"""A control plane on 127.0.0.1 that the real Modal client believes in, and that runs containers as local processes.

What it copies of Modal's behaviour, because strop leans on it:

- A container has a copy of its own of the runs Volume, made when it starts. What it writes is lost with it unless it
  was committed. A commit brings what changed here since the last one, and wins over whoever committed it before; a
  reload while a file on the Volume is open is refused.
- A call that fails is tried again in a new container as often as its retry policy says. A container that ends
  without an answer was preempted: the same input starts again, and no retry is used up.
- An app that was started detached outlives its client; another is stopped with it.

Every request is recorded. There is one loop, in one thread; tests read its state and call `preempt`.
"""

import asyncio
import contextlib
import hashlib
import itertools
import os
import shutil
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from grpclib.const import Handler
from grpclib.server import Server
from modal_proto import api_grpc, api_pb2

from waiting import PATIENCE, until

SECRETS = {"huggingface": {"HF_TOKEN": "hf_thisisacanaryandnotatoken00000"}}
"""What the account's secrets hold; a test looks for the value everywhere."""

HERE = Path(__file__).parent
BLOCK_BYTES = 8 << 20
RESULT = api_pb2.GenericResult
OUT, ERR = api_pb2.FILE_DESCRIPTOR_STDOUT, api_pb2.FILE_DESCRIPTOR_STDERR


@dataclass
class Call:
    """A function call and its input."""

    id: str
    function_id: str
    app_id: str
    args: api_pb2.FunctionInput
    policy: api_pb2.FunctionRetryPolicy
    created: float
    tasks: list["Task"] = field(default_factory=list)
    num_retries: int = 0
    output: api_pb2.FunctionGetOutputsItem | None = None
    logs: list[api_pb2.TaskLogs] = field(default_factory=list)
    cancelled: bool = False


@dataclass
class Task:
    """A container."""

    id: str
    call: Call
    root: Path
    process: asyncio.subprocess.Process | None = None
    answered: bool = False
    synced: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        """The container's own copy of the runs Volume."""
        return self.root / "runs"


class FakeModal:
    """See the module.

    Args:
        folder: Everything that is kept lies here.
        secrets: Environments by the names of secrets.
        container_env: Added to every container's environment.
    """

    def __init__(self, folder: Path, secrets: dict[str, dict[str, str]], container_env: dict[str, str]) -> None:
        self.folder, self.secrets, self.container_env = folder, secrets, container_env
        self.requests: list[tuple[str, Message]] = []
        self.calls: dict[str, Call] = {}
        self.tasks: dict[str, Task] = {}
        self.functions: dict[str, api_pb2.Function] = {}
        self.variants: dict[str, tuple[str, api_pb2.FunctionOptions]] = {}
        self.apps: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        """That an RPC of this name takes to be answered."""
        self._objects: dict[str, api_pb2.Object] = {}
        self._ids: dict[str, Iterator[int]] = defaultdict(lambda: itertools.count(1))
        self._named: dict[tuple[str, str], str] = {}
        self._secret_names: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._is_closing = False
        self._background: set[asyncio.Task[None]] = set()

    # ----------------------------------------------------------------------------------------------- for the tests

    @property
    def client_env(self) -> dict[str, str]:
        """What leads a client here, and nowhere else."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return {
            "HOME": str(home),
            "MODAL_CONFIG_PATH": str(home / "none.toml"),
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": "ak-test",
            "MODAL_TOKEN_SECRET": "as-test",
        }

    def volume(self, name: str) -> Path:
        """The committed state of a Volume."""
        path = self.folder / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def sent(self, name: str) -> list[Any]:
        """The requests of one kind, in order."""
        return [request for kind, request in self.requests if kind == name]

    def preempt(self, task: Task, number: signal.Signals = signal.SIGINT) -> None:
        """Signal the container's process, as Modal does; SIGKILL takes its children too."""
        assert task.process is not None
        if number == signal.SIGKILL:
            os.killpg(task.process.pid, number)
        else:
            os.kill(task.process.pid, number)

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Wait in the test's thread until a condition holds, and return what it gave."""
        return until(condition, self.output, pause=0.02)

    def output(self) -> str:
        """All that containers printed."""
        return "".join(item.data for call in self.calls.values() for item in call.logs)

    # --------------------------------------------------------------------------------------------------- the server

    @contextlib.contextmanager
    def running(self) -> Iterator["FakeModal"]:
        """Serve from a thread; at the end no container is left."""
        ready, over = threading.Event(), asyncio.Event()

        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            server = Server([self])
            await server.start("127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server._server.sockets[0].getsockname()[1]}"
            blocks = web.AppRunner(self._block_server(), access_log=None)
            await blocks.setup()
            site = web.TCPSite(blocks, "127.0.0.1", 0)
            await site.start()
            self.blocks_url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
            ready.set()
            await over.wait()
            self._is_closing = True
            for task in self.tasks.values():
                with contextlib.suppress(ProcessLookupError):
                    self.preempt(task, signal.SIGKILL)
            if self._background:
                await asyncio.wait(self._background, timeout=20)
            await blocks.cleanup()
            server.close()

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        assert ready.wait(PATIENCE)
        try:
            yield self
        finally:
            self.loop.call_soon_threadsafe(over.set)
            thread.join(PATIENCE)

    def __mapping__(self) -> dict[str, Handler]:
        """Every RPC of Modal's; those with no method here answer UNIMPLEMENTED."""
        names = api_grpc.ModalClientBase.__abstractmethods__
        blank = type("Blank", (api_grpc.ModalClientBase,), dict.fromkeys(names))()
        return {
            path: handler._replace(func=self._serve(path.rpartition("/")[2]))
            for path, handler in blank.__mapping__().items()
        }

    def _serve(self, name: str) -> Callable[[Any], Any]:
        answer = getattr(self, name, None)

        async def serve(stream: Any) -> None:
            request = await stream.recv_message()
            self.requests.append((name, request))
            if answer is None:
                raise GRPCError(Status.UNIMPLEMENTED, name)
            await asyncio.sleep(self.seconds.get(name, 0.0))
            given = answer(request, self.tasks.get(stream.metadata.get("x-test-task", "")))
            if isinstance(given, AsyncIterator):
                async for message in given:
                    await stream.send_message(message)
            else:
                await stream.send_message(await given)

        return serve

    def _new_id(self, kind: str) -> str:
        return f"{kind}-{next(self._ids[kind])}"

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), max(0.0, seconds))

    # --------------------------------------------------------------------------------------------------------- apps

    async def ClientHello(self, request: Empty, task: Task | None) -> Message:
        return api_pb2.ClientHelloResponse(image_builder_version="2025.06")

    async def EnvironmentGetOrCreate(self, request: Any, task: Task | None) -> Message:
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06")
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id="en-1", metadata=api_pb2.EnvironmentMetadata(name="main", settings=settings)
        )

    async def AppCreate(self, request: Any, task: Task | None) -> Message:
        app_id = self._new_id("ap")
        self.apps[app_id] = request.app_state
        return api_pb2.AppCreateResponse(app_id=app_id, app_page_url="page", app_logs_url="logs")

    async def AppHeartbeat(self, request: Any, task: Task | None) -> Message:
        return Empty()

    async def AppPublish(self, request: Any, task: Task | None) -> Message:
        return api_pb2.AppPublishResponse()

    async def AppClientDisconnect(self, request: Any, task: Task | None) -> Message:
        if self.apps[request.app_id] == api_pb2.APP_STATE_EPHEMERAL:
            for call in self.calls.values():
                if call.app_id == request.app_id and call.output is None:
                    await self._cancel(call)
        self.apps[request.app_id] = api_pb2.APP_STATE_STOPPED
        self._notify()
        return Empty()

    # --------------------------------------------------------------------------------- mounts, images, secrets, data

    async def MountGetOrCreate(self, request: Any, task: Task | None) -> Message:
        digest = api_pb2.MountHandleMetadata(content_checksum_sha256_hex="0" * 64)
        mount_id = self._new_id("mo")
        self._objects[mount_id] = api_pb2.Object(object_id=mount_id, mount_handle_metadata=digest)
        return api_pb2.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=digest)

    async def MountBatchedCheckExistence(self, request: Any, task: Task | None) -> Message:
        return api_pb2.MountBatchedCheckExistenceResponse()

    async def MountPutFile(self, request: Any, task: Task | None) -> Message:
        return api_pb2.MountPutFileResponse(exists=True)

    async def ImageGetOrCreate(self, request: Any, task: Task | None) -> Message:
        image_id = self._new_id("im")
        self._objects[image_id] = api_pb2.Object(object_id=image_id)
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id,
            result=RESULT(status=RESULT.GENERIC_STATUS_SUCCESS),
            metadata=api_pb2.ImageMetadata(image_builder_version="2025.06"),
        )

    async def SecretGetOrCreate(self, request: Any, task: Task | None) -> Message:
        if request.deployment_name not in self.secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{request.deployment_name}' not found")
        secret_id = self._new_id("st")
        self._secret_names[secret_id] = request.deployment_name
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id)

    async def VolumeGetOrCreate(self, request: Any, task: Task | None) -> Message:
        key = ("vo", request.deployment_name)
        volume_id = self._named.setdefault(key, f"vo-{request.deployment_name}")
        metadata = api_pb2.VolumeMetadata(version=api_pb2.VOLUME_FS_VERSION_V2, name=request.deployment_name)
        self._objects[volume_id] = api_pb2.Object(object_id=volume_id, volume_metadata=metadata)
        self.volume(request.deployment_name)
        return api_pb2.VolumeGetOrCreateResponse(volume_id=volume_id, version=metadata.version, metadata=metadata)

    async def VolumeCommit(self, request: Any, task: Task | None) -> Message:
        if task is not None and request.volume_id == "vo-strop-runs":
            _commit(task, self.volume("strop-runs"))
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    async def VolumeReload(self, request: Any, task: Task | None) -> Message:
        assert task is not None
        if _open_files(task.runs):
            raise GRPCError(Status.FAILED_PRECONDITION, "there are open files preventing the operation")
        _reload(task, self.volume("strop-runs"))
        return Empty()

    async def VolumeListFiles2(self, request: Any, task: Task | None) -> AsyncIterator[Message]:
        root = self.volume(request.volume_id.removeprefix("vo-"))
        start = root / request.path.strip("/")
        if not start.exists():
            raise GRPCError(Status.NOT_FOUND, "No such file or directory")
        paths = sorted(start.rglob("*") if request.recursive else start.iterdir())
        yield api_pb2.VolumeListFiles2Response(
            entries=[
                api_pb2.FileEntry(
                    path=path.relative_to(root).as_posix(),
                    type=api_pb2.FileEntry.DIRECTORY if path.is_dir() else api_pb2.FileEntry.FILE,
                    size=path.stat().st_size,
                )
                for path in paths
            ]
        )

    async def VolumePutFiles2(self, request: Any, task: Task | None) -> Message:
        missing = [
            api_pb2.VolumePutFiles2Response.MissingBlock(
                file_index=i, block_index=j, put_url=f"{self.blocks_url}/{block.contents_sha256.hex()}"
            )
            for i, file in enumerate(request.files)
            for j, block in enumerate(file.blocks)
            if not (self._blocks / block.contents_sha256.hex()).exists()
        ]
        if not missing:
            for file in request.files:
                path = self.volume(request.volume_id.removeprefix("vo-")) / file.path.strip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                blocks = [(self._blocks / block.contents_sha256.hex()).read_bytes() for block in file.blocks]
                padded = b"".join(
                    block.ljust(BLOCK_BYTES, b"\0") for block in blocks
                )  # zeros at a block's end are not sent
                path.write_bytes(padded[: file.size])
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing)

    async def VolumeGetFile2(self, request: Any, task: Task | None) -> Message:
        path = self.volume(request.volume_id.removeprefix("vo-")) / request.path.strip("/")
        if not path.is_file():
            raise GRPCError(Status.NOT_FOUND, "No such file or directory")
        content = path.read_bytes()
        urls = []
        for start in range(0, len(content), BLOCK_BYTES):
            block = content[start : start + BLOCK_BYTES]
            name = hashlib.sha256(block).hexdigest()
            (self._blocks / name).write_bytes(block)
            urls.append(f"{self.blocks_url}/{name}")
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=len(content), start=0, len=len(content))

    @property
    def _blocks(self) -> Path:
        path = self.folder / "blocks"
        path.mkdir(exist_ok=True)
        return path

    def _block_server(self) -> web.Application:
        async def put(request: web.Request) -> web.Response:
            (self._blocks / request.match_info["name"]).write_bytes(await request.read())
            return web.Response(body=b"stored")

        async def get(request: web.Request) -> web.Response:
            return web.Response(body=(self._blocks / request.match_info["name"]).read_bytes())

        app = web.Application(client_max_size=2 * BLOCK_BYTES)
        app.add_routes([web.put("/{name}", put), web.get("/{name}", get)])
        return app

    # ---------------------------------------------------------------------------------------- functions and calls

    def _metadata(self, function_id: str) -> api_pb2.FunctionHandleMetadata:
        return api_pb2.FunctionHandleMetadata(
            function_name="train",
            function_type=api_pb2.Function.FUNCTION_TYPE_FUNCTION,
            definition_id=f"de-{function_id}",
            supported_input_formats=[api_pb2.DATA_FORMAT_PICKLE],
            supported_output_formats=[api_pb2.DATA_FORMAT_PICKLE],
        )

    async def FunctionPrecreate(self, request: Any, task: Task | None) -> Message:
        function_id = self._new_id("fu")
        return api_pb2.FunctionPrecreateResponse(function_id=function_id, handle_metadata=self._metadata(function_id))

    async def FunctionCreate(self, request: Any, task: Task | None) -> Message:
        function_id = request.existing_function_id or self._new_id("fu")
        self.functions[function_id] = request.function
        self._app_of_function = request.app_id
        return api_pb2.FunctionCreateResponse(
            function_id=function_id,
            function=request.function,
            handle_metadata=self._metadata(function_id),
            function_data=api_pb2.FunctionData(
                ranked_functions=[api_pb2.FunctionData.RankedFunction(rank=0, function=request.function)]
            ),
        )

    async def FunctionBindParams(self, request: Any, task: Task | None) -> Message:
        bound = self._new_id("fu")
        self.variants[bound] = (request.function_id, request.function_options)
        return api_pb2.FunctionBindParamsResponse(bound_function_id=bound, handle_metadata=self._metadata(bound))

    async def FunctionMap(self, request: Any, task: Task | None) -> Message:
        base, _ = self.variants[request.function_id]
        call = Call(
            self._new_id("fc"),
            request.function_id,
            self._app_of_function,
            request.pipelined_inputs[0].input,
            self.functions[base].retry_policy,
            time.time(),
        )
        self.calls[call.id] = call
        self._later(self._start(call))
        item = api_pb2.FunctionPutInputsResponseItem(idx=0, input_id=f"in-{call.id}", input_jwt="jwt")
        return api_pb2.FunctionMapResponse(function_call_id=call.id, pipelined_inputs=[item], retry_policy=call.policy)

    async def FunctionGetOutputs(self, request: Any, task: Task | None) -> Message:
        call, deadline = self.calls[request.function_call_id], time.monotonic() + request.timeout
        while call.output is None and time.monotonic() < deadline:
            await self._wait(deadline - time.monotonic())
        outputs = [call.output] if call.output is not None else []
        return api_pb2.FunctionGetOutputsResponse(outputs=outputs, num_unfinished_inputs=1 - len(outputs))

    async def FunctionCallFromId(self, request: Any, task: Task | None) -> Message:
        call = self.calls[request.function_call_id]
        metadata = api_pb2.FunctionCallHandleMetadata(app_id=call.app_id, function_id=call.function_id)
        return api_pb2.FunctionCallFromIdResponse(function_call_id=call.id, num_inputs=1, metadata=metadata)

    async def FunctionCallGetInfo(self, request: Any, task: Task | None) -> Message:
        call = self.calls[request.function_call_id]
        done = api_pb2.InputCategoryInfo(total=int(call.output is not None))
        info = api_pb2.FunctionCallInfo(
            function_call_id=call.id, created_at=call.created, succeeded_inputs=done, total_inputs=1
        )
        return api_pb2.FunctionCallGetInfoResponse(info=info)

    async def FunctionCallCancel(self, request: Any, task: Task | None) -> Message:
        await self._cancel(self.calls[request.function_call_id])
        return Empty()

    async def _cancel(self, call: Call) -> None:
        call.cancelled = True
        for task in call.tasks:
            if task.process is not None and task.process.returncode is None:
                task.process.send_signal(signal.SIGUSR1)  # what the container's heartbeat does when it hears of it
        self._finish(call, RESULT(status=RESULT.GENERIC_STATUS_TERMINATED, exception="cancelled"))

    def _finish(self, call: Call, result: Any) -> None:
        if call.output is None:
            call.output = api_pb2.FunctionGetOutputsItem(
                result=result, idx=0, input_id=f"in-{call.id}", data_format=api_pb2.DATA_FORMAT_PICKLE
            )
        self._notify()

    # ------------------------------------------------------------------------------------------------------- logs

    async def AppGetLogs(self, request: Any, task: Task | None) -> AsyncIterator[Message]:
        deadline = time.monotonic() + request.timeout
        position = int(request.last_entry_id or 0)
        while True:
            items = self._items(request)
            if len(items) > position:
                yield api_pb2.TaskLogsBatch(items=items[position:], entry_id=str(len(items)))
                position = len(items)
            stopped = self.apps.get(request.app_id) == api_pb2.APP_STATE_STOPPED
            if stopped and all(call.output for call in self.calls.values() if call.app_id == request.app_id):
                yield api_pb2.TaskLogsBatch(app_done=True)
                return
            if time.monotonic() >= deadline:
                return
            await self._wait(deadline - time.monotonic())

    async def AppCountLogs(self, request: Any, task: Task | None) -> Message:
        response = api_pb2.AppCountLogsResponse(app_id=request.app_id)
        since, until = request.since.ToNanoseconds(), request.until.ToNanoseconds()
        width = request.bucket_secs * 10**9
        for start in range(since // width * width, until, width):
            count = sum(start <= item.timestamp_ns < start + width for item in self._items(request))
            bucket = response.buckets.add(stdout_logs=count)
            bucket.bucket_start_at.FromNanoseconds(start)
        return response

    async def AppFetchLogs(self, request: Any, task: Task | None) -> Message:
        since, until = request.since.ToNanoseconds(), request.until.ToNanoseconds()
        items = [item for item in self._items(request) if since <= item.timestamp_ns < until]
        return api_pb2.AppFetchLogsResponse(batches=[api_pb2.TaskLogsBatch(items=items)])

    def _items(self, request: Any) -> list[Any]:
        calls = [call for call in self.calls.values() if call.app_id == request.app_id]
        wanted = [call for call in calls if request.function_call_id in ("", call.id)]
        return sorted((item for call in wanted for item in call.logs), key=lambda item: item.timestamp_ns)

    # -------------------------------------------------------------------------------------------------- containers

    def _later(self, coroutine: Any) -> None:
        job = asyncio.ensure_future(coroutine)
        self._background.add(job)
        job.add_done_callback(self._background.discard)

    async def _start(self, call: Call) -> None:
        task = Task(self._new_id("ta"), call, self.folder / "containers" / f"{call.id}-{len(call.tasks)}")
        task.root.mkdir(parents=True)
        _reload(task, self.volume("strop-runs"))
        for name in ("data", "cache"):
            (task.root / name).symlink_to(self.volume(f"strop-{name}"))
        base, options = self.variants[call.function_id]
        arguments = task.root / "arguments"
        arguments.write_bytes(self._arguments(task, base).SerializeToString())
        secret_ids = options.secret_ids
        task.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "modal_container.py"),
            env=self._container_environment(task, arguments, secret_ids),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self.tasks[task.id] = task
        call.tasks.append(task)
        await asyncio.gather(
            self._collect(task, task.process.stdout, OUT),
            self._collect(task, task.process.stderr, ERR),
            task.process.wait(),
        )
        await self._after(task)

    async def _after(self, task: Task) -> None:
        """A container has ended: a call that has no answer yet gets another."""
        call = task.call
        if call.output is None and not self._is_closing:
            if len(call.tasks) > 20:
                self._finish(call, RESULT(status=RESULT.GENERIC_STATUS_FAILURE, exception="containers keep dying"))
            else:
                call.num_retries += task.answered
                await self._start(call)

    def _arguments(self, task: Task, function_id: str) -> Any:
        layout = api_pb2.AppLayout(function_ids={"train": function_id})
        layout.objects.extend(self._objects.values())
        layout.objects.append(
            api_pb2.Object(object_id=function_id, function_handle_metadata=self._metadata(function_id))
        )
        return api_pb2.ContainerArguments(
            task_id=task.id,
            function_id=task.call.function_id,
            app_id=task.call.app_id,
            function_def=self.functions[function_id],
            app_layout=layout,
            environment_name="main",
        )

    def _container_environment(self, task: Task, arguments: Path, secret_ids: Any) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")}
        secrets = [self.secrets[self._secret_names[secret_id]] for secret_id in secret_ids]
        own = {
            "MODAL_SERVER_URL": self.url,
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": task.id,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(arguments),
            "MODAL_OVERRIDE_HEADERS": f"x-test-task:{task.id}",
            "FAKE_MODAL_ROOT": str(task.root),
            "STROP_CACHE": str(task.root / "cache" / "strop"),
            "PYTHONPATH": str(HERE.parents[1] / "src"),
            "PYTHONUNBUFFERED": "1",
        }
        environment = kept | own | self.container_env
        for secret in secrets:
            environment |= secret
        return environment

    async def _collect(self, task: Task, stream: asyncio.StreamReader | None, source: int) -> None:
        assert stream is not None
        async for line in stream:
            task.call.logs.append(
                api_pb2.TaskLogs(
                    data=line.decode("utf-8", "replace"),
                    file_descriptor=source,
                    timestamp_ns=time.time_ns(),
                    timestamp=time.time(),
                    function_call_id=task.call.id,
                )
            )
            self._notify()

    async def ContainerHello(self, request: Any, task: Task | None) -> Message:
        return Empty()

    async def ContainerHeartbeat(self, request: Any, task: Task | None) -> Message:
        return api_pb2.ContainerHeartbeatResponse()

    async def FunctionGetInputs(self, request: Any, task: Task | None) -> Message:
        assert task is not None
        item = api_pb2.FunctionGetInputsItem(
            input_id=f"in-{task.call.id}",
            input=task.call.args,
            function_call_id=task.call.id,
            function_call_invocation_type=api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC,
            retry_count=task.call.num_retries,
        )
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    async def FunctionPutOutputs(self, request: Any, task: Task | None) -> Message:
        assert task is not None
        task.answered = True
        result, call = request.outputs[0].result, task.call
        failed = result.status not in (RESULT.GENERIC_STATUS_SUCCESS, RESULT.GENERIC_STATUS_TERMINATED)
        if not failed or call.num_retries >= call.policy.retries:
            self._finish(call, result)
        return Empty()

    async def TaskResult(self, request: Any, task: Task | None) -> Message:
        """The container could not even load the function."""
        assert task is not None
        self._finish(task.call, request.result)
        return Empty()


def _commit(task: Task, volume: Path) -> None:
    """Bring what the container changed, made or removed since the last time to the Volume."""
    now = _state(task.runs)
    for name in task.synced.keys() - now.keys():
        (volume / name).unlink(missing_ok=True)
    for name in (name for name in now if task.synced.get(name) != now[name]):
        (volume / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # it went away while we looked: the next commit will say so
            shutil.copyfile(task.runs / name, volume / name)
    task.synced = now


def _reload(task: Task, volume: Path) -> None:
    """Make the container's files those of the Volume."""
    shutil.rmtree(task.runs, ignore_errors=True)
    shutil.copytree(volume, task.runs)
    task.synced = _state(task.runs)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Times and sizes of all files by name."""
    state = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                state[path.relative_to(folder).as_posix()] = (path.stat().st_mtime_ns, path.stat().st_size)
    return state


def _open_files(folder: Path) -> list[str]:
    """Files below a folder that some process has open."""
    found = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if (target := os.readlink(descriptor)).startswith(f"{folder}/"):
                found.append(target)
    return found
