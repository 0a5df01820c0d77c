import re
import subprocess
import sys
from dataclasses import replace
from pkgutil import resolve_name

import pytest

from samexport.errors import ConfigError
from samexport.models.catalog import MODELS, find_family, find_model, names_of
from samexport.models.spec import Preprocess

SAM = {"mobilesam.tinyvit", "tinysam.tinysam", "sam.vit_b", "sam.vit_l", "sam.vit_h"}
SAM2 = {f"sam2.{version}hiera_{size}" for version in ("", "sam2_") for size in ("t", "s", "b+", "l")}
PUBLIC = SAM | SAM2
HIDDEN = {
    "test.tinyvit64",
    "test.vit64",
    "test.hiera64",
    "test.hiera128_sparse",
    "sam2.hiera_b+_sparse",
    "sam2.hiera_l_sparse",
}


def test_catalogue_has_these_models_and_hides_those_for_tests():
    assert {name for name, model in MODELS.items() if not model.hidden} == PUBLIC
    assert {name for name, model in MODELS.items() if model.hidden} == HIDDEN
    assert all(name == model.name for name, model in MODELS.items())


@pytest.mark.parametrize("name", sorted(name for name, model in MODELS.items() if model.family == "sam"))
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
    assert source.url.startswith("https://")
    assert source.url.endswith("/" + source.filename)
    assert source.sha256 is None or re.fullmatch("[0-9a-f]{64}", source.sha256)
    assert (source.sha256 is None) == (name == "tinysam.tinysam" or name in SAM2)
    assert MODELS[name].licence == "Apache-2.0"


def test_frames_are_sams():
    sams = Preprocess(1024, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert {MODELS[name].frame for name in SAM} == {sams}
    assert {MODELS[name].frame for name in SAM2} == {replace(sams, resize="stretch", filter="bilinear_float")}


def test_tiny_sam_offers_no_single_mask():
    assert {name for name, model in MODELS.items() if model.mask_outputs != (0, 1, 2, 3)} == {"tinysam.tinysam"}
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
