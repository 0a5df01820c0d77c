import re
import subprocess
import sys
from dataclasses import replace
from pkgutil import resolve_name

import pytest

from samexport.errors import ConfigError
from samexport.models.catalog import MODELS, find_family, find_model, names_of
from samexport.models.families.sam import SamSize
from samexport.models.spec import Preprocess

SAMS = {"mobilesam.tinyvit", "tinysam.tinysam", "sam.vit_b", "sam.vit_l", "sam.vit_h"}
SAM2 = {f"sam2.{version}hiera_{size}" for version in ("", "sam2_") for size in ("t", "s", "b+", "l")}
OTHERS = {
    "edgesam.edge_sam",
    "edgesam.edge_sam_3x",
    "repvitsam.repvit_m2_3",
    *(f"efficientvitsam.efficientvit_{size}" for size in ("l0", "l1", "l2", "xl0", "xl1")),
    "nanosam.nanosam_resnet18",
    "slimsam.slimsam",
    "slimsam.slimsam_50",
    "slimsam.slimsam_77",
    "hqsam.hq_tinyvit",
    "hqsam.hq_vit_b",
    "efficientsam.efficient_sam_ti",
    "efficientsam.efficient_sam_s",
}
PUBLIC = SAMS | SAM2 | OTHERS
FOR_TESTS = (
    "tinyvit64",
    "vit64",
    "edge64",
    "repvit64",
    "efficientvit64",
    "nano64",
    "slim64",
    "hq64",
    "efficientsam64",
    "hiera64",
    "hiera128",
)
# the same with a bypass for windows, or with a shortcut that is not trained
NOT_SHOWN = {f"{name}_{form}" for name in ("test.hiera64", "test.hiera128", *SAM2) for form in ("sparse", "shortcut")}


def test_catalogue_has_these_models_and_hides_those_for_tests():
    assert {name for name, model in MODELS.items() if not model.hidden} == PUBLIC
    for_tests = {f"test.{name}" for name in FOR_TESTS}
    assert {name for name, model in MODELS.items() if model.hidden} == for_tests | NOT_SHOWN
    assert all(name == model.name for name, model in MODELS.items())


@pytest.mark.parametrize("name", sorted(name for name, model in MODELS.items() if isinstance(model.size, SamSize)))
def test_dotted_paths_lead_to_the_builders(name):
    assert callable(resolve_name(MODELS[name].size.image_encoder))
    assert isinstance(resolve_name(MODELS[name].size.encoder_graph), type)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_parameter_count_is_the_networks_without_the_unused_classifier(name):
    network = resolve_name(find_family(MODELS[name].family).network)(MODELS[name])
    unused = ("image_encoder.head.", "image_encoder.norm_head.")
    assert MODELS[name].parameters == sum(p.numel() for k, p in network.named_parameters() if not k.startswith(unused))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_source_is_an_https_address_with_a_whole_sha256_or_none(name):
    source = MODELS[name].source
    if source is None:
        # of the one only ONNX files were published, the other is any SlimSAM
        assert name in ("nanosam.nanosam_resnet18", "slimsam.slimsam")
        return
    assert source.url.startswith("https://")
    assert source.url.endswith("/" + source.filename) or source.url.startswith("https://drive.google.com/file/d/")
    assert source.sha256 is None or re.fullmatch("[0-9a-f]{64}", source.sha256)
    assert (source.sha256 is None) == (name not in SAMS or name == "tinysam.tinysam")


@pytest.mark.parametrize(
    ("model", "feature", "name", "adapter", "windows"),
    [
        ("hiera_b+", "sparse", "sam2.hiera_b+_sparse", "bypass_bottleneck_base.pth", True),
        ("hiera_l", "sparse", "sam2.hiera_l_sparse", "bypass_bottleneck_large.pth", True),
        ("hiera_t", "sparse", "sam2.hiera_t", None, False),
        ("sam2_hiera_b+", "sparse", "sam2.sam2_hiera_b+", None, False),
        ("hiera_s", "sparse-adapter", "sam2.hiera_s_sparse", None, True),
        ("hiera_s", "sparse-shortcut", "sam2.hiera_s_shortcut", None, True),
    ],
)
def test_sparse_models_have_windows_where_a_bypass_was_published_or_is_asked_for(
    model, feature, name, adapter, windows
):
    found = find_model(model, 512, [feature])
    graphs = {graph.name for graph in found.graphs}
    assert (found.name, found.frame.size) == (name, 512)
    assert (found.adapter.filename if found.adapter else None) == adapter
    assert (windows, True) == ("encoder_stem" in graphs, "memory_attention_pruned" in graphs)
    assert bool(found.untrained) == name.endswith("_shortcut")
    with pytest.raises(ConfigError, match="hiera64_sparse has no feature 'sparse-shortcut'"):
        find_model("test.hiera64_sparse", None, ["sparse-shortcut"])


def test_licences_are_the_authors():
    special = {name: MODELS[name].licence for name in PUBLIC if not MODELS[name].licence.startswith("Apache-2.0")}
    assert set(special) == {"edgesam.edge_sam", "edgesam.edge_sam_3x"}
    assert all("NON-COMMERCIAL" in licence for licence in special.values())


def test_frames_are_sams_but_for_three_and_sam_2s():
    sams = Preprocess(1024, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert {MODELS[name].frame for name in SAM2} == {replace(sams, resize="stretch", filter="bilinear_float")}
    others = {name.partition(".")[2] for name in SAMS | OTHERS if MODELS[name].frame != sams}
    small = {f"efficientvit_l{number}" for number in range(3)}
    assert others == small | {"nanosam_resnet18", "efficient_sam_ti", "efficient_sam_s"}
    frames = [find_model(name).frame for name in small]
    assert {(frame.size, frame.prompts, frame.grid, frame.low_res) for frame in frames} == {(512, 1024, 64, 256)}


def test_tiny_sam_and_efficient_sam_offer_no_single_mask():
    found = {name.partition(".")[2] for name, model in MODELS.items() if model.mask_outputs != (0, 1, 2, 3)}
    assert found == {"tinysam", "efficient_sam_ti", "efficient_sam_s", "efficientsam64"}
    assert find_model("tinysam").mask_outputs == (1, 2, 3)


@pytest.mark.parametrize("name", MODELS)
def test_model_is_found_by_its_name_and_by_its_encoder(name):
    assert find_model(name) is find_model(MODELS[name].encoder) is MODELS[name]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("vit_t", "mobilesam.tinyvit"),
        ("mobilesam", "mobilesam.tinyvit"),
        ("mobile_sam", "mobilesam.tinyvit"),
        ("MobileSAM", "mobilesam.tinyvit"),
        ("mobile_sam.pt", "mobilesam.tinyvit"),
        ("tinysam_42.3.pth", "tinysam.tinysam"),
        ("sam_vit_b", "sam.vit_b"),
        ("sam_vit_b_01ec64", "sam.vit_b"),
        ("sam_vit_l_0b3195.pth", "sam.vit_l"),
        ("sam_vit_h_4b8939", "sam.vit_h"),
        ("sam_l.pt", "sam.vit_l"),
        ("sam_huge", "sam.vit_h"),
        ("facebook/sam-vit-base", "sam.vit_b"),
        ("sam2.1_hiera_tiny.pt", "sam2.hiera_t"),
        ("sam2.1_hiera_base_plus", "sam2.hiera_b+"),
        ("facebook/sam2.1-hiera-large", "sam2.hiera_l"),
        ("sam2.1_hiera_s", "sam2.hiera_s"),
        ("sam2_hiera_tiny.pt", "sam2.sam2_hiera_t"),
        ("facebook/sam2-hiera-base-plus", "sam2.sam2_hiera_b+"),
        ("edge_sam_3x.pth", "edgesam.edge_sam_3x"),
        ("repvit_sam.pt", "repvitsam.repvit_m2_3"),
        ("efficientvit_sam_xl1.pt", "efficientvitsam.efficientvit_xl1"),
        ("nanosam", "nanosam.nanosam_resnet18"),
        ("SlimSAM-77-uniform.pth", "slimsam.slimsam_77"),
        ("Zigeng/SlimSAM-uniform-50", "slimsam.slimsam_50"),
        ("hq_sam_tiny", "hqsam.hq_tinyvit"),
        ("sam_hq_vit_b.pth", "hqsam.hq_vit_b"),
        ("efficient_sam_vitt.pt", "efficientsam.efficient_sam_ti"),
        ("efficient_sam_vits.pt", "efficientsam.efficient_sam_s"),
    ],
)
def test_other_names_that_people_use_are_known(alias, name):
    assert find_model(alias) is MODELS[name]


def test_no_name_leads_to_two_models_and_none_leaves_a_folder():
    names = [name for model in MODELS.values() for name in names_of(model)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_+]+", name) for name in MODELS)


@pytest.mark.parametrize("wrong", ["tinyvit6", "test.tinyvit", "vit_64", "test", "test.vit_b", "test.vit"])
def test_suggestions_never_name_the_models_for_tests(wrong):
    with pytest.raises(ConfigError) as caught:
        find_model(wrong)
    hint = str(caught.value).partition(";")[2]
    assert not any(
        re.search(rf"\b{re.escape(name)}\b", hint) for m in MODELS.values() if m.hidden for name in names_of(m)
    )
    assert "tinyvit64" not in hint
    assert "test." not in hint


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("tinyvitt", "did you mean tinyvit"),
        ("vit-b", "vit_b"),
        ("mobilesam.tinyvitt", "mobilesam.tinyvit"),
        ("mobilsam", "tinyvit"),
        ("qqqqq", "samexport list"),
        ("", "samexport list"),
    ],
)
def test_wrong_name_gets_one_line_with_a_way_on(wrong, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        find_model(wrong)
    assert repr(wrong) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_the_catalogue_imports_no_heavy_library():
    code = "import sys, samexport.models.catalog; print(*{'torch', 'numpy', 'onnx', 'PIL'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
