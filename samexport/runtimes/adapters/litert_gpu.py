"""LiteRT's GPU accelerator (WebGPU on Vulkan), strictly: a file with one operation outside the GPU does not open.

It needs no GPU: SwiftShader, the Vulkan driver inside Debian's chromium, computes on the CPU what a GPU would be
told. That shows that every operation compiles and that the float32 results are right. It shows nothing about
half precision (which phones use, and SwiftShader lacks), about OpenCL and Metal, about drivers or speed.

Three traps, and what is done about them: ``is_fully_accelerated()`` is also True for files that ran on the CPU in
part, so GPU alone is asked for, which raises; a call returns before the GPU has computed, so the outputs are read
back; a crash in a driver ends the process, so the accelerator lives in one of its own.

``python -m samexport.runtimes.adapters.litert_gpu FILE DESCRIPTOR`` is that process.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np

from samexport.errors import MissingDependency, ParityFailed, RuntimeFailed
from samexport.files import reason
from samexport.models.spec import GraphSpec
from samexport.runtimes.adapters.entry_points import Bucket
from samexport.runtimes.adapters.litert import EntryPoints
from samexport.runtimes.base import Tensors, check_file

REMEDY = "apt-get install libvulkan1 chromium"
SWIFTSHADER = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
_DRIVER_VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
_DRIVER_FOLDERS = (Path("/usr/share/vulkan/icd.d"), Path("/etc/vulkan/icd.d"))
_ACCELERATOR = "libLiteRtWebGpuAccelerator.so"
# a 1024-pixel encoder takes about a minute on SwiftShader with two cores
_TIMEOUT_SECONDS = 1800
_LOOK_SECONDS, _LOOKS = 0.1, 3


def find_driver() -> Path | None:
    """The Vulkan driver to use: what the environment names, a real GPU's, else SwiftShader; None without any."""
    for variable in _DRIVER_VARIABLES:
        if os.environ.get(variable):
            return Path(os.environ[variable])
    for folder in _DRIVER_FOLDERS:
        # Mesa's software driver offers no adapter that WebGPU takes
        drivers = sorted(d for d in folder.glob("*.json") if "lvp" not in d.name)
        if drivers and Path("/dev/dri").exists():
            return drivers[0]
    return SWIFTSHADER if SWIFTSHADER.is_file() else None


def why_unavailable() -> str:
    """What is missing to open files on a GPU here; empty if nothing is."""
    if os.name == "nt":
        return "the accelerator's process cannot be started on Windows"
    found = importlib.util.find_spec("ai_edge_litert")
    if found is None or not found.submodule_search_locations:
        return "ai-edge-litert is not installed"
    if not (Path(found.submodule_search_locations[0]) / _ACCELERATOR).is_file():
        return "this build of ai-edge-litert has no WebGPU accelerator"
    if ctypes.util.find_library("vulkan") is None:
        return f"there is no Vulkan loader: {REMEDY}"
    return "" if find_driver() else f"there is no Vulkan driver: {REMEDY}"


class LiteRtGpuRuntime(EntryPoints):
    """A TFLite file on the GPU alone, float32.

    Raises:
        MissingDependency: there is no accelerator, Vulkan loader or driver.
        ParityFailed: an operation would leave the GPU; the message names it.
        RuntimeFailed: the driver refuses the file, ends the process or does not answer.
        BundleError: the file's entry points are not those of the spec.
    """

    name = "litert-gpu"

    def __init__(self, path: Path, graph: GraphSpec, *, threads: int | None = None) -> None:
        super().__init__(path, graph)
        missing = why_unavailable()
        if missing:
            raise MissingDependency(f"the GPU check cannot run: {missing}")
        check_file(path)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._pipe, far_end = Pipe()
        command = [sys.executable, "-m", __name__, str(path), str(far_end.fileno())]
        environment = {**os.environ, "VK_DRIVER_FILES": str(find_driver())}
        self._process = subprocess.Popen(
            command, env=environment, pass_fds=[far_end.fileno()], stdout=self._log, stderr=self._log
        )
        far_end.close()
        try:
            self._read_entry_points(self._answer("open"))
        except BaseException:
            self.close()
            raise

    def _answer(self, doing: str) -> Any:
        """What the process sends; an error it reports, its death or its silence is raised."""
        try:
            if not self._pipe.poll(_TIMEOUT_SECONDS):
                raise RuntimeFailed(f"the GPU did not {doing} {self._path.name} in {_TIMEOUT_SECONDS} s")
            ok, answer = self._pipe.recv()
        except EOFError as error:
            raise RuntimeFailed(f"the GPU process died when it should {doing} {self._path.name}") from error
        if not ok:
            refused = "; ".join(self.refusals())
            kind = ParityFailed if refused else RuntimeFailed
            raise kind(f"the GPU does not {doing} {self._path.name}: {refused or answer}")
        return answer

    def _call(self, bucket: Bucket, inputs: Tensors) -> Tensors:
        try:
            self._pipe.send((bucket.name, inputs))
        except OSError as error:
            raise RuntimeFailed(f"the GPU process for {self._path.name} is gone") from error
        outputs: Tensors = self._answer("run")
        return outputs

    def _lines(self) -> list[str]:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").splitlines()

    def refusals(self) -> list[str]:
        """Operations that the accelerator named as unsupported, ``"BROADCAST_TO: ..."``, each once."""
        named = (line for line in self._lines() if re.match(r"(?!INFO:|WARNING:|ERROR:)[A-Z0-9_]+: ", line))
        return list(dict.fromkeys(named))

    def placement(self) -> str:
        """The adapter that computes."""
        found = re.search(r"Selected adapter: ([^,]+)", "\n".join(self._lines()))
        return f"GPU (WebGPU), {found.group(1) if found else 'unknown adapter'}, all operations"

    def _release(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()
        self._log.close()


class _Worker:
    """The other process: compiles for the GPU alone, then runs what it is sent."""

    def __init__(self, path: str) -> None:
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.gpu_options import GpuOptions
        from ai_edge_litert.hardware_accelerator import HardwareAccelerator
        from ai_edge_litert.options import Options

        options = Options(hardware_accelerators=HardwareAccelerator.GPU, gpu_options=GpuOptions(enforce_f32=True))
        self.model = CompiledModel.from_file(path, options=options)

    def shapes(self) -> dict[str, tuple[dict[str, list[int]], dict[str, list[int]]]]:
        """{entry point: (shapes of inputs, of outputs)}."""
        return {
            name: (self._shapes(self.model.get_input_tensor_details(name)),
                   self._shapes(self.model.get_output_tensor_details(name)))
            for name in self.model.get_signature_list()
        }  # fmt: skip

    @staticmethod
    def _shapes(details: Mapping[str, Any]) -> dict[str, list[int]]:
        return {name: [int(size) for size in detail["shape"]] for name, detail in details.items()}

    def run(self, entry: str, inputs: Tensors) -> Tensors:
        """One call with read-back."""
        ins = {name: self.model.create_input_buffer_by_name(entry, name) for name in inputs}
        for name, buffer in ins.items():
            buffer.write(inputs[name].ravel())
        shapes = self._shapes(self.model.get_output_tensor_details(entry))
        outs = {name: self.model.create_output_buffer_by_name(entry, name) for name in shapes}
        self.model.run_by_name(entry, ins, outs)
        _wait_while_computing()
        return {
            name: np.array(outs[name].read(int(np.prod(shape)), np.float32)).reshape(shape)
            for name, shape in shapes.items()
        }


def _wait_while_computing() -> None:
    """Wait until this process is idle. SwiftShader computes in its threads, and reading waits two minutes at most."""
    idle = 0
    while idle < _LOOKS:
        time.sleep(_LOOK_SECONDS)
        idle = 0 if _computes() else idle + 1


def _computes() -> bool:
    """Whether a thread besides this one wants to run: on a busy machine it may be runnable and get no time."""
    own, tasks = threading.get_native_id(), Path("/proc/self/task")
    states = set()
    # only Linux tells; reading then waits, for two minutes at most
    for task in tasks.iterdir() if tasks.is_dir() else ():
        # a thread may end meanwhile
        with contextlib.suppress(OSError):
            if int(task.name) != own:
                states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return not states <= {"S"}


def _serve(path: str, pipe: Connection[Any, Any]) -> None:
    """Answer until the pipe closes: (True, result) or (False, reason)."""
    try:
        worker = _Worker(path)
        pipe.send((True, worker.shapes()))
        while True:
            entry, inputs = pipe.recv()
            pipe.send((True, worker.run(entry, inputs)))
    except EOFError:
        return
    except (RuntimeError, ValueError) as error:
        pipe.send((False, reason(error)))


if __name__ == "__main__":
    _serve(sys.argv[1], Connection(int(sys.argv[2])))
