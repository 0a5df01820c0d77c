"""``Segmenter.swift`` parses as Swift, and what it knows of a bundle is what the bundle says."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

from samexport.exporter.deliver import sam_swift as swift
from samexport.exporter.deliver.sam_swift import FILE_NAME, swift_source
from samexport.models.catalog import MODELS, find_model
from samexport.models.families.sam import LABELS, sam_graphs
from samexport.models.spec import Preprocess
from samexport.runtimes.bundle import Artifact, Bundle, Manifest, WeightsInfo
from samexport.runtimes.formats.mlpackage import Function, Package, Value, read_package
from samexport.runtimes.tasks.segment import DEFAULT_CHUNK

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
    """The Swift text of an imagined bundle."""

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
        return swift_source(Bundle(Path("bundle"), manifest))

    return make


def constants(text: str) -> dict[str, str]:
    contract = text[text.index("enum Contract") : text.index("\n}\n", text.index("enum Contract"))]
    return dict(re.findall(r"static let (\w+)(?:: [^=]+)? = ([^\n]+)", contract))


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


def test_the_fixed_code_names_no_tensor_and_no_size_of_its_own():
    root = parse(Path(swift.__file__).with_name(FILE_NAME).read_text())
    known = {t.name for g in sam_graphs(Preprocess(1024)) for t in (*g.inputs, *g.outputs)}
    texts = {n.text.decode() for n in nodes(root, "line_str_text")}
    assert not {word for text in texts for word in re.findall(r"\w+", text)} & (known - {"image"})
    assert "image" not in texts
    # halves, RGB and BGRA, four taps, 8 bits in 22, a rule of SAM's (three tokens); and versions of systems
    numbers = {n.text.decode() for n in nodes(root, "integer_literal")}
    assert numbers <= set("012348") | {"22", "255"} | {"16", "13", "9", "18", "15", "11"}
    assert {n.text.decode() for n in nodes(root, "real_literal")} == {"0.5"}


@pytest.mark.parametrize(("layout", "split"), [("flexible", True), ("functions", False), ("packages", False)])
def test_the_file_parses_as_swift_and_says_what_was_not_done(source, layout, split):
    text = source(layout=layout, split=split)
    root = parse(text)
    assert not root.has_error
    assert {n.text.decode() for n in nodes(root, "import_declaration")} == {
        "@preconcurrency import CoreML", "import CoreGraphics", "import CoreVideo", "import Foundation",
    }  # fmt: skip
    assert "NOT compiled with Apple's SDK and not run on a device" in text
    assert max(map(len, text.splitlines())) <= 120
    for broken in (text.replace("private func choose(", "private func choose", 1), text[:-3]):
        assert parse(broken).has_error


def test_the_contract_has_all_that_the_fixed_code_asks_of_it(source):
    asked = set(re.findall(r"Contract\.(\w+)", Path(swift.__file__).with_name(FILE_NAME).read_text()))
    for split in (False, True):
        assert asked - set(re.findall(r"static let (\w+)", source(split=split))) == set()
    assert len(asked) > 15


def test_a_bundle_carries_the_file_of_its_own_packages(coreml_bundle):
    text = (coreml_bundle.folder / FILE_NAME).read_text()
    assert FILE_NAME in coreml_bundle.manifest.files
    assert text == swift_source(coreml_bundle)
    assert tensors(graph_text(text, "decoder"))[0] == ("image_embeddings", (1, 64, 4, 4))
    (entry,) = ENTRY.findall(graph_text(text, "decoder"))
    package = read_package(coreml_bundle.folder / f"{entry[0]}.mlpackage")
    assert package.functions["main"].bounds["point_labels"] == ((1, int(entry[2])), (1, int(entry[3])))


def test_another_frame_gives_another_file(source):
    other = replace(SPEC, frame=Preprocess(512, mean=(1, 2.5, 3)), graphs=sam_graphs(Preprocess(512)))
    text = source(other)
    assert (constants(text)["frameSize"], constants(text)["lowRes"]) == ("512", "128")
    assert "1024" not in text
    assert "123.675" not in text
