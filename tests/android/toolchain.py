"""Finds and runs the Kotlin compiler, JUnit and aapt; where they are missing tests fail in CI and skip elsewhere."""

import os
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.android.vectors import ROOT

DEMO = ROOT / "android_demo_assets"
APP = DEMO / "app/src/main"
STUBS = Path(__file__).parent / "stubs"
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
JUNIT = tuple(Path("/usr/share/java") / name for name in ("junit4.jar", "hamcrest.jar"))
INSTALL = (
    "apt-get install openjdk-17-jdk-headless junit4 libhamcrest-java aapt android-framework-res; "
    "npm install --prefix DIR kotlin-compiler@2.4.20; export KOTLIN_HOME=DIR/node_modules/kotlin-compiler"
)
# the demo's Gradle files name Kotlin 2.2; the compiler is newer
LANGUAGE = ("-language-version", "2.2", "-api-version", "2.2", "-jvm-target", "17", "-Werror", "-no-stdlib")
JAVA = ("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx1g")


def kotlin_home():
    """The compiler's folder, or None."""
    command = shutil.which("kotlinc")
    found = os.environ.get("KOTLIN_HOME") or (command and Path(command).resolve().parent.parent)
    return Path(found) if found and (Path(found) / "lib/kotlin-compiler.jar").is_file() else None


def require(*, kotlin=False, aapt=False):
    """Fail in CI, skip elsewhere, where a tool is missing; the reason says how to install all of them."""
    missing = []
    if kotlin:
        missing += ["kotlin-compiler (KOTLIN_HOME)"] * (kotlin_home() is None) + ["java"] * (not shutil.which("java"))
        missing += [jar.name for jar in JUNIT if not jar.is_file()]
    if aapt:
        missing += ["aapt"] * (not shutil.which("aapt")) + [FRAMEWORK.name] * (not FRAMEWORK.is_file())
    if missing:
        reason = f"the Android demo is not checked, {', '.join(missing)} is missing: {INSTALL}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@dataclass(frozen=True)
class Compiled:
    code: int
    said: str
    classes: Path


def compile_kotlin(folder, jobs):
    """Compile ``{name: (sources, classpath)}`` in one JVM, in order; a name in a classpath is an earlier job."""
    lib = kotlin_home() / "lib"
    for name, (sources, classpath) in jobs.items():
        path = [lib / "kotlin-stdlib.jar", *(folder / c if c in jobs else c for c in classpath)]
        arguments = [*LANGUAGE, "-cp", os.pathsep.join(map(str, path)), "-d", folder / name, *sources]
        (folder / f"{name}.job").write_text("\n".join(map(str, arguments)))
    files = [str(folder / f"{name}.job") for name in jobs]
    driver = str(Path(__file__).parent / "Compile.java")
    subprocess.run([*JAVA, "-cp", f"{lib}/*", driver, *files], check=True, capture_output=True)
    results = {}
    for name in jobs:
        code, said = (folder / f"{name}.job.out").read_text().split("\n", 1)
        results[name] = Compiled(int(code), said, folder / name)
    return results


def run_junit(*classpath):
    """Run the demo's JUnit tests on compiled classes: (exit code, output)."""
    sources = sorted((DEMO / "core/src/test/kotlin").rglob("*Test.kt"))
    names = [f"dev.samexport.core.{source.stem}" for source in sources]
    path = [*classpath, DEMO / "core/src/test/resources", *JUNIT, kotlin_home() / "lib/kotlin-stdlib.jar"]
    command = [*JAVA, "-cp", os.pathsep.join(map(str, path)), "org.junit.runner.JUnitCore", *names]
    run = subprocess.run(command, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def run_bridge(folder, runners, *classpath):
    """Bridge.kt on a model folder: the line it ends with. ``runners`` is {file: {entry point: LiteRT's runner}}."""
    path = os.pathsep.join(map(str, (*classpath, kotlin_home() / "lib/kotlin-stdlib.jar")))
    command = [*JAVA, "-Djava.awt.headless=true", "-cp", path, "BridgeKt", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def text():
            return process.stdout.read(struct.unpack(">H", process.stdout.read(2))[0]).decode()

        while file := text():
            runner = runners[file][text()]
            inputs = {}
            for _ in range(struct.unpack(">i", process.stdout.read(4))[0]):
                name = text()
                size = struct.unpack(">i", process.stdout.read(4))[0]
                values = np.frombuffer(process.stdout.read(4 * size), ">f4").astype(np.float32)
                inputs[name] = values.reshape(runner.get_input_details()[name]["shape"])
            for value in order(runner(**inputs)):
                process.stdin.write(struct.pack(">i", value.size) + value.astype(">f4").tobytes())
            process.stdin.flush()
        return text()


def order(outputs):
    """As the graphs' outputs stand in the contract."""
    return [outputs[name] for name in ("image_embeddings", "low_res_masks", "iou_predictions") if name in outputs]


def gradle(pattern):
    """What ``pattern`` captures in the app's Gradle file."""
    return re.search(pattern, (DEMO / "app/build.gradle.kts").read_text())[1]


def run_aapt(folder, *options, res=APP / "res"):
    """``aapt package`` on the demo, with what the Android Gradle plugin adds to the manifest."""
    manifest = folder / "AndroidManifest.xml"
    package = f'<manifest package="{gradle(r"namespace = .(.*).")}"'
    manifest.write_text((APP / "AndroidManifest.xml").read_text().replace("<manifest", package, 1))
    sdk = ("--min-sdk-version", gradle(r"minSdk = (\d+)"), "--target-sdk-version", gradle(r"targetSdk = (\d+)"))
    command = ["aapt", "package", "-f", "-M", manifest, "-S", res, "-I", FRAMEWORK, *sdk, *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)
