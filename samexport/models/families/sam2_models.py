"""SAM 2 and 2.1 as data: the models, those that can be sparse among them, and the family."""

from __future__ import annotations

from dataclasses import replace

from samexport.models.families.base import Family, Loop
from samexport.models.families.sam2 import VIDEO_GRAPHS, Sam2Numbers, all_graphs, at_size, graph_names, image_frame
from samexport.models.families.sam2_sparse import MEMORY_ATTENTION_PRUNED, SPARSE_FEATURES, Cut
from samexport.models.spec import Adapter, CheckpointSource, ModelSpec

_URL = "https://dl.fbaipublicfiles.com/segment_anything_2"
# in every checkpoint, and read by nothing
_UNREAD = ("no_mem_pos_enc",)


def _hiera(letter: str, word: str, version: str, parameters: int) -> ModelSpec:
    frame, file = image_frame(), word.replace("-", "_")
    later = version == "2.1"
    stem, folder = ("sam2.1", "092824") if later else ("sam2", "072824")
    filename = f"{stem}_hiera_{file}.pt"
    short = f"hiera_{letter}"
    numbers = Sam2Numbers(f"samexport.models.architectures.sam2:{file.upper()}", version=version)
    aliases = [f"{stem}_{letter}", f"{stem}-hiera-{word}", f"facebook/{stem}-hiera-{word}"]
    if later:
        aliases += [f"hiera_{file}", f"{stem}_{short}"]
    return ModelSpec(
        # the older ones have the names of their official configurations
        name=f"sam2.{short}" if later else f"sam2.sam2_{short}",
        summary=f"SAM {version} with its Hiera {word} encoder, for pictures and videos",
        size=numbers,
        family="sam2",
        frame=frame,
        graphs=all_graphs(frame.size, numbers),
        parameters=parameters,
        licence="Apache-2.0",
        source=CheckpointSource(filename, f"{_URL}/{folder}/{filename}", None),
        aliases=tuple(aliases),
        unread=_UNREAD,
    )


_ADAPTERS = "https://raw.githubusercontent.com/jingjing0419/Efficient-SAM2/8e1ad06089b9c958ff5ebfc72b9b7d0b904f5ce5"
_BYPASS = {
    "b+": ("base", "5e415e3d207f09ffe94216b1472a83518de5c54425ab55bdef8f331761af1c65"),
    "l": ("large", "fa2a22b31979bf840786cf82ce8c3fda9780d35c00b3763afafe1e6014e09c06"),
}
"""By encoder, the bypass that was published for SAM 2.1: the word in its file's name, and the file's sha256."""


def _bypass(letter: str) -> Adapter:
    word, sha256 = _BYPASS[letter]
    file = f"bypass_bottleneck_{word}.pth"
    return Adapter(file, f"{_ADAPTERS}/bypass/ckpt/{file}", sha256, "bypass.")


def _with_bypass(dense: ModelSpec, cut: Cut, adapter: Adapter | None) -> ModelSpec:
    """A model that encodes chosen windows; the others get Efficient-SAM2's bottleneck."""
    numbers = replace(dense.size, cut=cut)
    return replace(
        dense, name=f"{dense.name}_sparse", summary=f"{dense.summary}, that can be sparse", size=numbers,
        graphs=all_graphs(dense.frame.size, numbers), aliases=(), hidden=True, adapter=adapter,
    )  # fmt: skip


def _without_bypass(dense: ModelSpec, cut: Cut) -> ModelSpec:
    """The same without one: windows that are not chosen skip blocks that were trained to be there."""
    numbers = replace(dense.size, cut=replace(cut, bypass=False))
    return replace(
        dense, name=f"{dense.name}_shortcut", summary=f"{dense.summary}, that can be sparse (shortcut not trained)",
        size=numbers, graphs=all_graphs(dense.frame.size, numbers), aliases=(), hidden=True,
        untrained="a shortcut that is not trained: windows that take it are worse than they could be",
    )  # fmt: skip


_SIZES = (("t", "tiny"), ("s", "small"), ("b+", "base-plus"), ("l", "large"))
_PARAMETERS = {
    "2.1": (38_962_498, 46_060_354, 80_850_178, 224_446_642),
    "2.0": (38_945_986, 46_043_842, 80_833_666, 224_430_130),
}
_CUTS = {"t": Cut(14, 384), "s": Cut(14, 384), "b+": Cut(14, 448), "l": Cut(16, 576)}


def _test(name: str, summary: str, network: str, side: int) -> ModelSpec:
    numbers = Sam2Numbers(f"samexport.models.architectures.sam2:{network}", 64, 2)
    return ModelSpec(
        name=name, summary=summary, size=numbers, family="sam2", frame=image_frame(side),
        graphs=all_graphs(side, numbers),
        parameters=0, licence="Apache-2.0", hidden=True, unread=_UNREAD,
    )  # fmt: skip


_DENSE = {
    (letter, version): _hiera(letter, word, version, count)
    for version, counts in _PARAMETERS.items()
    for (letter, word), count in zip(_SIZES, counts, strict=True)
}
_TESTS = (
    _test("test.hiera64", "a 64-pixel SAM 2.1 for tests; there are no trained weights", "SHALLOW", 64),
    _test("test.hiera128", "a 128-pixel SAM 2.1 for tests", "CUT", 128),
)
_TEST_CUTS = {"test.hiera64": Cut(2, 64), "test.hiera128": Cut(6, 64)}
_BYPASSED = {
    model.name: _with_bypass(model, _CUTS[letter], _bypass(letter) if letter in _BYPASS and version == "2.1" else None)
    for (letter, version), model in _DENSE.items()
} | {model.name: _with_bypass(model, _TEST_CUTS[model.name], None) for model in _TESTS}
_SHORTCUTS = {model.name: _without_bypass(model, _CUTS[letter]) for (letter, _), model in _DENSE.items()} | {
    model.name: _without_bypass(model, _TEST_CUTS[model.name]) for model in _TESTS
}
_MODELS = (*_DENSE.values(), *_TESTS, *_BYPASSED.values(), *_SHORTCUTS.values())
# of windows where a bypass was published, else of memories alone
_SPARSE = {model.name: model.name for model in _MODELS} | {
    name: model.name for name, model in _BYPASSED.items() if model.adapter is not None or name in _TEST_CUTS
}
_VARIANTS = dict(
    zip(
        SPARSE_FEATURES,
        (_SPARSE, *({name: model.name for name, model in each.items()} for each in (_BYPASSED, _SHORTCUTS))),
        strict=True,
    )
)

_CLIP = "samexport.runtimes.families.sam2_clip"

FAMILY = Family(
    name="sam2",
    models=_MODELS,
    graphs=graph_names,
    features=("video", *SPARSE_FEATURES),
    variants=_VARIANTS,
    network="samexport.models.architectures.sam2:empty_sam2",
    forms="samexport.models.graphs.sam2:EXPORT",
    plain="samexport.models.graphs.sam2:PLAIN",
    session="samexport.runtimes.families.sam2_session:Sam2Session",
    cases="samexport.runtimes.families.sam2_cases:make_cases",
    constants="samexport.models.families.sam2:sam2_constants",
    at_size=at_size,
    loops=(
        Loop("video", VIDEO_GRAPHS, f"{_CLIP}:follow"),
        # until old memories are pruned, and two more frames
        Loop("sparse video", (*VIDEO_GRAPHS, MEMORY_ATTENTION_PRUNED), f"{_CLIP}:follow_sparse", frames=9),
    ),
    # a decoder's own file has what the others lack
    encoder_parts=("image_encoder.", "memory_", "obj_ptr_", "mask_downsample.", "maskmem_", "no_"),
    card="samexport.exporter.deliver.sam2_card:about",
    consumers="samexport.exporter.deliver.sam2_consumers:PROFILES",
)
