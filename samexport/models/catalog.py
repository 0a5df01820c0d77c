"""Every model as data. ``samexport list`` reads this and imports no torch."""

from __future__ import annotations

import difflib
import re

from samexport.errors import ConfigError
from samexport.models.families.sam import sam_graphs
from samexport.models.spec import CheckpointSource, Frame, ModelSpec, SamplerSpec

_ARCH = "samexport.models.architectures"
_GRAPHS = "samexport.models.graphs"
# TinyViT's classifier
_CLASSIFIER = ("image_encoder.norm_head.", "image_encoder.head.")
_FULL = Frame(1024)
_TINY = Frame(64)


def _sam_vit(size: str, word: str, parameters: int, filename: str, sha256: str) -> ModelSpec:
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
        aliases=(f"sam_vit_{size}", f"sam_{size}", f"vit{size}", f"sam_{word}", f"facebook/sam-vit-{word}"),
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
        aliases=("vit_t", "sam_vit_t", "vitt", "mobilesam", "mobile_sam", "tiny_vit", "sam_t"),
        unread=_CLASSIFIER,
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
    ModelSpec(
        name="test.tinyvit64",
        summary="a 64-pixel TinyViT for tests; there are no trained weights",
        unread=_CLASSIFIER,
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

_ENDING = re.compile(r"\.(pth?|ckpt|bin|safetensors)$")


def names_of(model: ModelSpec) -> tuple[str, ...]:
    """Every name of a model: ``family.encoder``, ``encoder``, the aliases, the official file's without its ending."""
    file = (_ENDING.sub("", model.source.filename),) if model.source else ()
    return tuple(dict.fromkeys((model.name, model.encoder, *model.aliases, *file)))


MODELS: dict[str, ModelSpec] = {m.name: m for m in _MODELS}
_BY_NAME: dict[str, ModelSpec] = {name: m for m in _MODELS for name in names_of(m)}
if len(_BY_NAME) != sum(len(names_of(m)) for m in _MODELS):
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
    """The model with this name, in any case, also a weight file's; ConfigError names the close matches.

    The names are ``family.encoder``, just ``encoder``, and the aliases.
    """
    model = _BY_NAME.get(name) or _BY_NAME.get(_ENDING.sub("", name.lower()))
    if model is None:
        shown = {known: m for known, m in _BY_NAME.items() if not m.hidden}
        close = difflib.get_close_matches(name, shown, n=8, cutoff=0.4)
        models = list(dict.fromkeys(known if known == shown[known].name else shown[known].encoder for known in close))
        hint = f"did you mean {' or '.join(models[:3])}?" if models else "see `samexport list`"
        raise ConfigError(f"no encoder is called {name!r}; {hint}")
    return model
