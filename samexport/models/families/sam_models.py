"""SAM's family: every model that shares its decoder."""

from __future__ import annotations

from typing import Any

from samexport.models.families.base import Family
from samexport.models.families.sam import SamSize, at_size, graph_names, sam_graphs
from samexport.models.spec import CheckpointSource, ModelSpec, Preprocess

_ARCH = "samexport.models.architectures"
_GRAPHS = "samexport.models.graphs"
# TinyViT's classifier
_CLASSIFIER = ("image_encoder.norm_head.", "image_encoder.head.")
_FULL = Preprocess(1024)
_TINY = Preprocess(64)
_ANY = {"any_size": True}


def _sam_vit(size: str, word: str, parameters: int, filename: str, sha256: str) -> ModelSpec:
    return ModelSpec(
        name=f"sam.vit_{size}",
        summary=f"Segment Anything with its ViT-{size.upper()} encoder",
        size=SamSize(f"{_ARCH}.sam_vit:vit_{size}", f"{_GRAPHS}.sam_vit:SamViTEncoder"),
        frame=_FULL,
        graphs=sam_graphs(_FULL),
        parameters=parameters,
        licence="Apache-2.0",
        source=CheckpointSource(filename, f"https://dl.fbaipublicfiles.com/segment_anything/{filename}", sha256),
        aliases=(f"sam_vit_{size}", f"sam_{size}", f"vit{size}", f"sam_{word}", f"facebook/sam-vit-{word}"),
    )


def _model(name: str, summary: str, encoder: str, graph: str, **others: Any) -> ModelSpec:
    """A model of 1024 pixels; ``encoder`` and ``graph`` are paths inside the packages of either."""
    frame = others.pop("frame", _FULL)
    size = SamSize(f"{_ARCH}.{encoder}", f"{_GRAPHS}.{graph}", **others.pop("size", {}))
    return ModelSpec(name=name, summary=summary, size=size, frame=frame, graphs=sam_graphs(frame), **others)


def _test(
    name: str, encoder: str, graph: str, frame: Preprocess = _TINY, *, size: dict[str, Any] | None = None, **others: Any
) -> ModelSpec:
    """The same code at 64 pixels."""
    return ModelSpec(
        name=f"test.{name}",
        summary=f"{name}, for tests; there are no trained weights",
        size=SamSize(f"{_ARCH}.{encoder}", f"{_GRAPHS}.{graph}", 64, 128, **size or {}),
        frame=frame,
        graphs=sam_graphs(frame, embed_dim=64),
        parameters=0,
        licence="Apache-2.0",
        hidden=True,
        **others,
    )


_EDGE_LICENCE = "NTU S-Lab License 1.0: NON-COMMERCIAL use only"
_HUGGING_FACE = "https://huggingface.co"
# branches of RepViT: the sums of 26 or 54 blocks grow beyond all bounds otherwise
_REPVIT_GAINS = (
    (r"token_mixer\.1\.fc[12]\.weight$", 0.7),
    (r"(token_mixer\.0\.conv1?(\.c)?|channel_mixer\.m\.2\.c)\.weight$", 0.3),
)


def _edge_sam(name: str, word: str, *aliases: str) -> ModelSpec:
    return _model(
        f"edgesam.{name}",
        f"EdgeSAM{word}: RepViT-M0.9 distilled with prompts, SAM's decoder fine-tuned",
        "rep_vit:edge_sam",
        "rep_vit:EdgeViTEncoder",
        parameters=9_582_112,
        licence=_EDGE_LICENCE,
        source=CheckpointSource(
            f"{name}.pth", f"{_HUGGING_FACE}/spaces/chongzhou/EdgeSAM/resolve/main/weights/{name}.pth", None
        ),
        aliases=aliases,
        size=_ANY,
        scores="stability",
        gains=_REPVIT_GAINS,
    )


# of the five published sizes; the sums of many residual branches grow beyond all bounds otherwise
_EFFICIENT_VIT_GAINS = (
    (r"stages\.\d+\.op_list\.0\.main\.point_conv\.conv\.weight$", 0.8),
    (r"\.(point_conv|conv2)\.conv\.weight$", 0.5),
    (r"\.aggreg\.0\.[01]\.weight$", 1.0),
    (r"context_module\.main\.proj\.conv\.weight$", 0.25),
)
_RESNET_GAINS = (
    (r"backbone\.layer\d\.\d\.conv2\.weight$", 0.7),
    (r"backbone\.layer\d\.0\.downsample\.0\.weight$", 1.0),
)
_DECODER = 6_220 + 4_058_340
_EFFICIENT_VIT = (
    ("l0", 34_792_784), ("l1", 47_650_128), ("l2", 61_328_592), ("xl0", 116_957_904), ("xl1", 203_346_128)
)  # fmt: skip
_L_FRAME = Preprocess(512, stride=8, mask_stride=2, prompt_size=1024)


def _efficient_vit(name: str, parameters: int) -> ModelSpec:
    file = f"efficientvit_sam_{name}.pt"
    return _model(
        f"efficientvitsam.efficientvit_{name}",
        f"EfficientViT-SAM-{name.upper()}: linear attention at {1024 if name.startswith('xl') else 512} pixels",
        f"efficient_vit:{name}",
        "efficient_vit:EfficientViTEncoder",
        frame=_FULL if name.startswith("xl") else _L_FRAME,
        size={"decoder_eps": 1e-6, "same_grid": True},
        parameters=parameters,
        licence="Apache-2.0 (code; nothing is said of the weights)",
        source=CheckpointSource(file, f"{_HUGGING_FACE}/mit-han-lab/efficientvit-sam/resolve/main/{file}", None),
        aliases=(f"efficientvit_sam_{name}", f"efficientvitsam_{name}"),
        gains=_EFFICIENT_VIT_GAINS,
    )


def _slim_sam(percent: str, parameters: int, drive: str) -> ModelSpec:
    return _model(
        f"slimsam.slimsam_{percent}",
        f"SlimSAM-{percent}: SAM ViT-B with {percent} % of the encoder pruned, all blocks alike",
        f"sam_vit:slimsam_{percent}",
        "sam_vit:SamViTEncoder",
        parameters=parameters,
        licence="Apache-2.0",
        source=CheckpointSource(f"SlimSAM-{percent}-uniform.pth", f"https://drive.google.com/file/d/{drive}", None),
        aliases=(f"slimsam_{percent}_uniform", f"slimsam-{percent}-uniform", f"zigeng/slimsam-uniform-{percent}"),
    )


_MODELS = (
    ModelSpec(
        name="mobilesam.tinyvit",
        summary="MobileSAM: TinyViT-5M encoder, SAM ViT-H's decoder",
        size=SamSize(f"{_ARCH}.tiny_vit:tiny_vit_5m", f"{_GRAPHS}.tiny_vit:TinyViTEncoder", any_size=True),
        frame=_FULL,
        graphs=sam_graphs(_FULL),
        parameters=9_808_452,
        licence="Apache-2.0",
        source=CheckpointSource(
            "mobile_sam.pt",
            "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
        aliases=("vit_t", "sam_vit_t", "vitt", "mobilesam", "mobile_sam", "tiny_vit", "sam_t"),
        unread=_CLASSIFIER,
        demo=("demo.0.safetensors", "demo.1.safetensors"),
    ),
    ModelSpec(
        name="tinysam.tinysam",
        summary="TinySAM: the same network as MobileSAM, distilled further",
        size=SamSize(f"{_ARCH}.tiny_vit:tiny_vit_5m", f"{_GRAPHS}.tiny_vit:TinyViTEncoder", any_size=True),
        frame=_FULL,
        graphs=sam_graphs(_FULL),
        parameters=9_808_452,
        licence="Apache-2.0",
        source=CheckpointSource(
            "tinysam_42.3.pth",
            "https://github.com/xinghaochen/TinySAM/releases/download/3.0/tinysam_42.3.pth",
            None,
        ),
        mask_outputs=(1, 2, 3),
        aliases=("tiny_sam",),
        unread=_CLASSIFIER,
    ),
    _sam_vit(
        "b",
        "base",
        93_735_472,
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    _sam_vit(
        "l",
        "large",
        312_342_832,
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    _sam_vit(
        "h",
        "huge",
        641_090_608,
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    _edge_sam("edge_sam", "", "edgesam"),
    _edge_sam("edge_sam_3x", " 3x", "edgesam_3x"),
    _model(
        "repvitsam.repvit_m2_3",
        "RepViT-SAM: RepViT-M2.3 encoder, SAM's decoder",
        "rep_vit:repvit_m2_3",
        "rep_vit:RepViTEncoder",
        size=_ANY,
        parameters=27_223_480,
        licence="Apache-2.0",
        source=CheckpointSource(
            "repvit_sam.pt", "https://github.com/THU-MIG/RepViT/releases/download/v1.0/repvit_sam.pt", None
        ),
        aliases=("repvit", "repvitsam"),
        gains=_REPVIT_GAINS,
    ),
    *(_efficient_vit(*row) for row in _EFFICIENT_VIT),
    _model(
        "nanosam.nanosam_resnet18",
        "NanoSAM: ResNet18 encoder distilled from MobileSAM's, MobileSAM's decoder",
        "nano_sam:resnet18",
        "nano_sam:NanoSamEncoder",
        frame=Preprocess(1024, filter="bicubic", rounding="down"),
        parameters=15_831_104 + _DECODER,
        licence="Apache-2.0 (code; nothing is said of the weights)",
        aliases=("nanosam", "resnet18"),
        gains=_RESNET_GAINS,
    ),
    _model(
        "slimsam.slimsam",
        "SlimSAM of any widths, which the checkpoint decides (the global models); random weights are SlimSAM-77's",
        "sam_vit:slimsam_77",
        "sam_vit:SamViTEncoder",
        size={"from_shapes": f"{_ARCH}.sam:pruned_sam"},
        parameters=9_723_528,
        licence="Apache-2.0",
        aliases=("slimsam_global", "slimsam-77-global", "slimsam-50-global", "slimsam-77", "slimsam-50"),
    ),
    _slim_sam("50", 27_961_776, "1Ld7Q2LY8H2nu4zB6VxwwA5npS5A9OHFq"),
    _slim_sam("77", 9_723_528, "1OeWpfk5WhdlMz5VvYmb9gaE6suzHB0sp"),
    _test("tinyvit64", "tiny_vit:tiny_vit_test", "tiny_vit:TinyViTEncoder", size=_ANY, unread=_CLASSIFIER),
    _test("vit64", "sam_vit:vit_test", "sam_vit:SamViTEncoder"),
    _test(
        "edge64",
        "rep_vit:edge_test",
        "rep_vit:EdgeViTEncoder",
        size=_ANY,
        gains=_REPVIT_GAINS,
        scores="stability",
    ),
    _test(
        "efficientvit64",
        "efficient_vit:test",
        "efficient_vit:EfficientViTEncoder",
        frame=Preprocess(64, stride=8, mask_stride=2, prompt_size=128),
        size={"same_grid": True},
        gains=_EFFICIENT_VIT_GAINS,
    ),
    _test("nano64", "nano_sam:resnet_test", "nano_sam:NanoSamEncoder", gains=_RESNET_GAINS),
    _test("slim64", "sam_vit:slim_test", "sam_vit:SamViTEncoder"),
    _test("repvit64", "rep_vit:repvit_test", "rep_vit:RepViTEncoder", size=_ANY, gains=_REPVIT_GAINS),
)

FAMILY = Family(
    name="sam",
    models=_MODELS,
    graphs=graph_names,
    features=("split-decoder", "small"),
    network=f"{_ARCH}.sam:empty_sam",
    forms=f"{_GRAPHS}.sam:EXPORT",
    plain=f"{_GRAPHS}.sam:PLAIN",
    equal={"decoder_step": "decoder"},
    at_size=at_size,
    session="samexport.runtimes.families.sam:SamSession",
    cases="samexport.runtimes.families.sam_cases:make_cases",
    encoder_parts=("image_encoder.",),
    dialects=("samexport.models.weights.layouts:transformers",),
    card="samexport.exporter.deliver.sam_card:about",
    extras={"coreml": "samexport.exporter.deliver.sam_swift:files"},
    consumers="samexport.exporter.deliver.sam_consumers:PROFILES",
)
