"""Every model as data. ``samexport list`` reads this and imports no torch."""

from __future__ import annotations

import difflib

from samexport.errors import ConfigError
from samexport.models.contracts import sam_graphs
from samexport.models.spec import CheckpointSource, Frame, ModelSpec, SamplerSpec

_ARCH = "samexport.models.architectures"
_GRAPHS = "samexport.models.graphs"
_FULL = Frame(1024)
_TINY = Frame(64)


def _sam_vit(size: str, parameters: int, filename: str, sha256: str) -> ModelSpec:
    return ModelSpec(
        name=f"sam.vit_{size}",
        summary=f"Segment Anything with its ViT-{size.upper()} encoder",
        image_encoder=f"{_ARCH}.sam_vit:vit_{size}",
        encoder_graph=f"{_GRAPHS}.sam_vit:SamViTEncoder",
        frame=_FULL,
        graphs=sam_graphs(_FULL),
        parameters=parameters,
        licence="Apache-2.0",
        source=CheckpointSource(filename, f"https://dl.fbaipublicfiles.com/segment_anything/{filename}", sha256),
    )


_MODELS = (
    ModelSpec(
        name="mobilesam.tinyvit",
        summary="MobileSAM: TinyViT-5M encoder, SAM ViT-H's decoder",
        image_encoder=f"{_ARCH}.tiny_vit:tiny_vit_5m",
        encoder_graph=f"{_GRAPHS}.tiny_vit:TinyViTEncoder",
        frame=_FULL,
        graphs=sam_graphs(_FULL),
        parameters=9_808_452,
        licence="Apache-2.0",
        source=CheckpointSource(
            "mobile_sam.pt",
            "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
    ),
    ModelSpec(
        name="tinysam.tinysam",
        summary="TinySAM: the same network as MobileSAM, distilled further",
        image_encoder=f"{_ARCH}.tiny_vit:tiny_vit_5m",
        encoder_graph=f"{_GRAPHS}.tiny_vit:TinyViTEncoder",
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
    ),
    _sam_vit(
        "b",
        93_735_472,
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    _sam_vit(
        "l",
        312_342_832,
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    _sam_vit(
        "h",
        641_090_608,
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    ModelSpec(
        name="test.tinyvit64",
        summary="a 64-pixel TinyViT for tests; there are no trained weights",
        image_encoder=f"{_ARCH}.tiny_vit:tiny_vit_test",
        encoder_graph=f"{_GRAPHS}.tiny_vit:TinyViTEncoder",
        frame=_TINY,
        graphs=sam_graphs(_TINY, embed_dim=64),
        parameters=0,
        licence="Apache-2.0",
        embed_dim=64,
        decoder_mlp_dim=128,
        hidden=True,
    ),
    ModelSpec(
        name="test.vit64",
        summary="a 64-pixel SAM ViT for tests; there are no trained weights",
        image_encoder=f"{_ARCH}.sam_vit:vit_test",
        encoder_graph=f"{_GRAPHS}.sam_vit:SamViTEncoder",
        frame=_TINY,
        graphs=sam_graphs(_TINY, embed_dim=64),
        parameters=0,
        licence="Apache-2.0",
        embed_dim=64,
        decoder_mlp_dim=128,
        hidden=True,
    ),
)

MODELS: dict[str, ModelSpec] = {m.name: m for m in _MODELS}
if len(MODELS) != len(_MODELS) or len({m.encoder for m in _MODELS}) != len(_MODELS):
    raise ValueError("two models of the catalogue share a name")

SAMPLERS: dict[str, SamplerSpec] = {
    sampler.name: sampler
    for sampler in (
        SamplerSpec(
            name="object-aware",
            summary="MobileSAMv2's class-agnostic YOLOv8x",
            size=f"{_ARCH}.object_detector:DETECTOR_X",
            image_size=1024,
            # while training, an object is the target of ten cells; 300 boxes are kept in the end
            candidates=3000,
            licence="AGPL-3.0 (the weights, as their trainer's owner holds)",
        ),
        SamplerSpec(
            name="test",
            summary="the same network with a few channels, for tests",
            size=f"{_ARCH}.object_detector:DETECTOR_TEST",
            image_size=96,
            candidates=60,
            licence="Apache-2.0",
            score_gain=64.0,
            hidden=True,
        ),
    )
}


def find_sampler(name: str) -> SamplerSpec:
    """The detector called ``name``; ConfigError names those that there are."""
    if name not in SAMPLERS:
        known = ", ".join(s.name for s in SAMPLERS.values() if not s.hidden)
        raise ConfigError(f"no sampler is called {name!r}; an export knows: {known}")
    return SAMPLERS[name]


def find_model(name: str) -> ModelSpec:
    """The model called ``family.encoder`` or just ``encoder``; ConfigError names the close matches."""
    by_encoder = {m.encoder: m for m in _MODELS}
    model = MODELS.get(name) or by_encoder.get(name)
    if model is None:
        shown = [known for m in _MODELS if not m.hidden for known in (m.encoder, m.name)]
        close = difflib.get_close_matches(name, shown, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else "see `samexport list`"
        raise ConfigError(f"no encoder is called {name!r}; {hint}")
    return model
