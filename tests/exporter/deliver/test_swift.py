"""The Swift package parses as Swift, and what it knows of a bundle is what the bundle says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

from samexport.exporter.deliver import sam_swift as swift
from samexport.exporter.deliver.sam_swift import CONTRACT, SOURCES, contract
from samexport.models.catalog import MODELS, find_model
from samexport.models.families.sam import LABELS, sam_graphs
from samexport.models.spec import Preprocess
from samexport.runtimes.bundle import Artifact, Bundle, Manifest, WeightsInfo
from samexport.runtimes.formats.mlpackage import Function, Package, Value, read_package
from samexport.runtimes.tasks.segment import DEFAULT_CHUNK
from tests.android.vectors import close
from tests.exporter.deliver.swift_vectors import FILE, make

SPEC = find_model("tinyvit")
# how a decoder comes: file and function of each entry point, its N and K (None: flexible up to 64 and 16)
LAYOUTS = {
    "flexible": {"main": ("{}.fp16", None, None)},
    "functions": {"decode_1": ("{}.fp16", "decode_1", (1, 8)), "decode_4": ("{}.fp16", "decode_4", (4, 2))},
    "packages": {
        name: (f"{{0}}.fp16.mlpackages/{{0}}.fp16.{name}", None, size)
        for name, size in {"decode_1": (1, 8), "decode_16": (16, 2)}.items()
    },
}


def parse(text: str) -> Node:
    return Parser(Language(tree_sitter_swift.language())).parse(text.encode()).root_node


def nodes(node: Node, kind: str) -> list[Node]:
    found = [node] if node.type == kind else []
    return found + [n for child in node.children for n in nodes(child, kind)]


def package_of(graph, layout, picture=False) -> Package:
    """What reading the packages of a graph would give, without converting anything."""
    functions = {}
    for name, (_, _, size) in layout.items():
        sizes = {"N": size and size[0], "K": size and size[1]}
        flexible = {"N": (1, 64), "K": (1, 16)}
        inputs = tuple(Value(t.name, "float32", tuple(sizes.get(d, d) for d in t.shape)) for t in graph.inputs)
        bounds = {
            t.name: () if size or not graph.axes else tuple(flexible.get(d, (d, d)) for d in t.shape)
            for t in graph.inputs
        }
        functions[name] = Function(name, inputs, graph.output_names, (), {}, bounds)
    files = {name: Path("bundle") / f"{file.format(graph.name)}.mlpackage" for name, (file, _, _) in layout.items()}
    return Package(functions, next(iter(layout)), frozenset({"image"} if picture else ()), files)


@pytest.fixture
def source(monkeypatch):
    """The contract of an imagined bundle."""

    def make(spec=SPEC, layout="flexible", split=False, picture=False):
        halves = ("decoder_prologue", "decoder_step") if split else ("decoder",)
        graphs = tuple(spec.graph(name) for name in ("encoder", *halves, "decoder_with_mask"))
        packages = {
            g.name: package_of(g, LAYOUTS[layout if g.axes else "flexible"], picture and g.name == "encoder")
            for g in graphs
        }
        monkeypatch.setattr(swift, "read_package", lambda path: packages[path.name])
        artifacts = tuple(Artifact(g.name, g.name, "coreml", "fp16", "", 1) for g in graphs)
        manifest = Manifest(
            spec.name, "", "", spec.frame, spec.mask_outputs, WeightsInfo("random", "", None, 7),
            graphs, artifacts, {}, {"samexport": "0.1.0"}, (),
        )  # fmt: skip
        return contract(Bundle(Path("bundle"), manifest))

    return make


def constants(text: str) -> dict[str, str]:
    found = text[text.index("enum Contract") : text.index("\n}\n", text.index("enum Contract"))]
    return dict(re.findall(r"static let (\w+)(?:: [^=]+)? = ([^\n]+)", found))


def graph_text(text: str, role: str) -> str:
    return re.search(rf"static let {role}: Graph\?? = Graph\((.*?)\n        \]\)", text, re.DOTALL)[1]


def tensors(text: str) -> list[tuple[str, tuple]]:
    codes = {".prompts": "N", ".points": "K"}
    return [
        (name, tuple(codes.get(axis) or int(axis[len(".fixed(") : -1]) for axis in axes.split(", ")))
        for name, axes in re.findall(r'Tensor\(name: "(\w+)", axes: \[([^\]]+)\]\)', text)
    ]


ENTRY = re.compile(
    r'EntryPoint\(\s+file: "(\S+)", function: (nil|"\w+"),\s+prompts: (\d+), points: (\d+), flexible: (true|false)\)'
)


@pytest.mark.parametrize("spec", [MODELS["mobilesam.tinyvit"], MODELS["tinysam.tinysam"], MODELS["test.vit64"]])
@pytest.mark.parametrize("split", [False, True])
def test_every_name_shape_code_and_size_is_that_of_the_spec(source, spec, split):
    text = source(spec, split=split, picture=split)
    roles = {"encoder": "encoder", "decoder": "decoder", "maskDecoder": "decoder_with_mask"}
    if split:
        roles |= {"prologue": "decoder_prologue", "decoder": "decoder_step"}
    for role, name in roles.items():
        graph = spec.graph(name)
        assert tensors(graph_text(text, role)) == [(t.name, t.shape) for t in (*graph.inputs, *graph.outputs)]
    found = constants(text)
    assert ("prologue" in found, found.get("prologue") == "nil") == (True, not split)
    assert [float(v) for v in found["pixelMean"].strip("[]").split(", ")] == list(spec.frame.mean)
    assert [int(v) for v in found["maskOutputs"].strip("[]").split(", ")] == list(spec.mask_outputs)
    numbers = {k: float(v) for k, v in found.items() if re.fullmatch(r"-?\d+", v)}
    assert numbers == {
        "frameSize": spec.frame.size, "lowRes": spec.frame.low_res, "maskCount": 4, "threshold": 0,
        "chunk": DEFAULT_CHUNK, "labelInside": 1, "labelOutside": 0, "labelBoxTopLeft": 2, "labelBoxBottomRight": 3,
        "labelPadding": -1, "labelAbsent": -2,
    }  # fmt: skip
    assert LABELS.startswith("1 inside, 0 outside, 2 and 3 box corners, -1 SAM's padding point, -2 absent")
    assert found["encoderTakesPicture"] == str(split).lower()
    names = {v.strip('"') for v in found.values() if v.startswith('"')}
    known = {t.name for g in sam_graphs(Preprocess(64)) for t in (*g.inputs, *g.outputs)}
    assert names <= known
    assert {"image", "point_coords", "point_labels", "mask_input", "has_mask_input"} <= names


@pytest.mark.parametrize("layout", LAYOUTS)
def test_entry_points_are_the_files_and_functions_of_the_packages(source, layout):
    text = source(layout=layout)
    assert ENTRY.findall(graph_text(text, "encoder")) == [("encoder.fp16", "nil", "1", "1", "false")]
    for role, name in (("decoder", "decoder"), ("maskDecoder", "decoder_with_mask")):
        wanted = [
            (
                file.format(name),
                f'"{function}"' if function else "nil",
                *(str(n) for n in size or (64, 16)),
                str(size is None).lower(),
            )
            for file, function, size in LAYOUTS[layout].values()
        ]
        assert ENTRY.findall(graph_text(text, role)) == wanted


FIXED = {path.relative_to(SOURCES).as_posix(): path.read_text() for path in sorted(SOURCES.rglob("*.swift"))}
CODE = "".join(FIXED[f"Sources/SamExport/{name}.swift"] for name in ("Host", "Segmenter"))


def test_the_fixed_code_names_no_tensor_and_no_size_of_its_own():
    root = parse(CODE)
    known = {t.name for g in sam_graphs(Preprocess(1024)) for t in (*g.inputs, *g.outputs)}
    texts = {n.text.decode() for n in nodes(root, "line_str_text")}
    assert not {word for text in texts for word in re.findall(r"\w+", text)} & (known - {"image"})
    assert "image" not in texts
    # halves, RGB and BGRA, four taps, 8 bits in 22, a rule of SAM's (three tokens); and versions of systems
    numbers = {n.text.decode() for n in nodes(root, "integer_literal")}
    assert numbers <= set("012348") | {"22", "255"} | {"16", "13", "9", "18", "15", "11"}
    assert {n.text.decode() for n in nodes(root, "real_literal")} == {"0.5"}


@pytest.mark.parametrize(("layout", "split"), [("flexible", True), ("functions", False), ("packages", False)])
def test_the_contract_parses_as_swift_and_says_what_was_not_done(source, layout, split):
    text = source(layout=layout, split=split)
    assert not parse(text).has_error
    assert "NOT compiled with Apple's SDK and not run on a device" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120


def imported(text: str) -> set[str]:
    return {n.text.decode() for n in nodes(parse(text), "import_declaration")}


def test_the_package_parses_as_swift():
    assert len(FIXED) == 5
    for name, text in FIXED.items():
        assert not parse(text).has_error, name
        assert max(map(len, text.splitlines())) <= 120, name
    host, segmenter = FIXED["Sources/SamExport/Host.swift"], FIXED["Sources/SamExport/Segmenter.swift"]
    assert imported(segmenter) == {
        "@preconcurrency import CoreML", "import CoreGraphics", "import CoreVideo", "import Foundation",
    }  # fmt: skip
    # compiles without an Apple system
    assert imported(host) == {"import Foundation"}
    assert imported(FIXED["Package.swift"]) == {"import PackageDescription"}
    for name in ("Segmenter", "SegmentView"):
        assert re.match(r"#if .*canImport\(CoreML\)\n", FIXED[f"Sources/SamExport/{name}.swift"])
        assert FIXED[f"Sources/SamExport/{name}.swift"].endswith("#endif\n")
    for broken in (host.replace("func choose(", "func choose", 1), host[:-3]):
        assert parse(broken).has_error


def test_what_the_parts_of_the_package_call_is_there():
    declared = set(re.findall(r"(?:func|struct|class|enum|actor) (\w+)", "".join(FIXED.values())))
    view, tests = FIXED["Sources/SamExport/SegmentView.swift"], FIXED["Tests/SamExportTests/HostTests.swift"]
    assert {"setImage", "predict", "Prompt", "tinted"} <= set(re.findall(r"(\w+)\(", view)) & declared
    used = {"resized", "PackedPrompt", "selectMask", "choose", "upscale", "AxisTaps", "resizedSize", "Frame"}
    assert used <= set(re.findall(r"(\w+)\(", tests)) & declared
    # labels of arguments too
    for function in ("selectMask", "choose", "upscale", "resizedSize"):
        given = re.search(rf"func {function}\((.*?)\) ", CODE, re.DOTALL)[1]
        labels = [label for label in re.findall(r"(?:^|, )\s*(\w+)(?: \w+)?: ", given.strip()) if label != "_"]
        (call,) = re.findall(rf"[= ]{function}\((.*?)\)(?:\n|\.file)", tests, re.DOTALL)
        flat = re.sub(r"\([^()]*\)", "", call)
        assert re.findall(r"(\w+): ", flat) == labels


def test_the_committed_vectors_are_what_python_computes_today():
    committed = json.loads(FILE.read_text())
    assert FILE.stat().st_size < 20_000
    assert close(json.loads(json.dumps(make())), committed), "python -m tests.exporter.deliver.swift_vectors"


def test_the_contract_has_all_that_the_fixed_code_asks_of_it(source):
    asked = set(re.findall(r"Contract\.(\w+)", CODE))
    for split in (False, True):
        assert asked - set(re.findall(r"static let (\w+)", source(split=split))) == set()
    assert len(asked) > 15


def test_a_bundle_carries_the_package_of_its_own_packages(coreml_bundle):
    text = (coreml_bundle.folder / CONTRACT).read_text()
    fixed = {path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*") if path.is_file()}
    assert len(fixed) == 6
    assert {CONTRACT, *fixed} <= set(coreml_bundle.manifest.files)
    for name in fixed:
        assert (coreml_bundle.folder / name).read_bytes() == (SOURCES / name).read_bytes()
    assert text == contract(coreml_bundle)
    assert tensors(graph_text(text, "decoder"))[0] == ("image_embeddings", (1, 64, 4, 4))
    (entry,) = ENTRY.findall(graph_text(text, "decoder"))
    package = read_package(coreml_bundle.folder / f"{entry[0]}.mlpackage")
    assert package.functions["main"].bounds["point_labels"] == ((1, int(entry[2])), (1, int(entry[3])))


def test_another_frame_gives_another_contract(source):
    other = replace(SPEC, frame=Preprocess(512, mean=(1, 2.5, 3)), graphs=sam_graphs(Preprocess(512)))
    text = source(other)
    assert (constants(text)["frameSize"], constants(text)["lowRes"]) == ("512", "128")
    assert "1024" not in text
    assert "123.675" not in text
