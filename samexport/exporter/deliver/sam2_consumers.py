"""Programs that take models of the SAM 2 family for pictures, as data. Facts were read in the programs' own code."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from samexport.exporter.deliver import sam2_adapters as adapters
from samexport.exporter.deliver import sam2_hosts as hosts
from samexport.exporter.deliver import sam_hosts
from samexport.exporter.deliver import sam_texts as texts
from samexport.exporter.deliver.profile import Host, Profile, Role

_PROMPT: dict[str, Role] = {
    "point_coords": "points",
    "point_labels": "labels",
    "mask_input": "mask",
    "has_mask_input": "has mask",
}


def _square(size: int) -> tuple[int, int]:
    return size, size


def _named(text: str, given: str, embed: str, fine: str, middle: str) -> str:
    for name, value in {"$input": given, "$embed": embed, "$fine": fine, "$middle": middle}.items():
        text = text.replace(name, value)
    return text


_NAMES = ("image", "image_embed", "high_res_feats_0", "high_res_feats_1")
_OSAM_NAMES = ("input", "image_embeddings", "high_res_features1", "high_res_features2")
_USLS_NAMES = ("images", "image_embeddings", "high_res_features_0", "high_res_features_1")
_JS_NAMES = ("pixel_values", *(f'"image_embeddings.{number}"' for number in (2, 0, 1)))
_STRETCHED = "Pictures are stretched to a square with a filter that does not widen, unlike that of SAM 2's own code."

_sam2 = partial(
    Profile, values=adapters.values, same_hw=_square, graphs=("image_encoder", "mask_decoder_with_mask"), size=None
)
_LABELLING = Host(
    hosts.stretched,
    "image",
    {"image_embed": "third", "high_res_feats_0": "first", "high_res_feats_1": "second", **_PROMPT},
    hosts.unstretched,
    padding="never",
    whole=True,
)
_FROM_OPENCV = Host(
    hosts.stretched,
    "input",
    {
        "image_embeddings": "first",
        "high_res_features1": "second",
        "high_res_features2": "third",
        **_PROMPT,
        "orig_im_size": "size",
    },
    sam_hosts.first_mask,
    padding="never",
    types={"size": "int64"},
)
_labelling = partial(
    _sam2,
    files={
        "$NAME.encoder.onnx": _named(adapters.encoder("fine middle embed"), *_NAMES),
        "$NAME.decoder.onnx": _named(adapters.LOW_RES_DECODER, *_NAMES),
    },
)

PROFILES = (
    _labelling(
        name="anylabeling",
        title="AnyLabeling",
        read="AnyLabeling 0.4.43 (services/auto_labeling/sam2_onnx.py, segment_anything.py)",
        tried="its own model class and a 64-pixel model of random weights: masks were those of the rules, IoU 1.0000",
        texts={"config.yaml": texts.ANYLABELING},
        host=_LABELLING,
        load=(
            "In AnyLabeling choose Auto Labeling, Load Custom Model, and open `config.yaml` of this folder.",
            "Click (Point+, Point-) or draw a box (Rect), then Finish Object.",
            _STRETCHED,
            "Points are cut off to whole pixels of the square.",
        ),
    ),
    _labelling(
        name="x-anylabeling",
        title="X-AnyLabeling",
        read="X-AnyLabeling 4.2.1 (services/auto_labeling/__base__/sam2.py)",
        texts={"config.yaml": texts.ANYLABELING.replace("segment_anything", "segment_anything_2")},
        host=replace(_LABELLING, frame=hosts.stretched_floats),
        load=(
            "In X-AnyLabeling's list of models choose Load Custom Model and open `config.yaml` of this folder.",
            "Click (Point+, Point-) or draw a box (Rect), then Finish Object. Video needs PyTorch there.",
            "Pictures are scaled as SAM 2's own code does it; points are cut off to whole pixels of the square.",
        ),
    ),
    _sam2(
        name="osam",
        title="osam, the model runner of labelme",
        read="osam 0.8.1 (osam/_models/sam2/_models.py)",
        files={
            "encoder.onnx": _named(adapters.encoder("embed fine middle"), *_OSAM_NAMES),
            "decoder.onnx": _named(adapters.PICTURE_DECODER, *_OSAM_NAMES),
        },
        texts={"osam_model.py": texts.OSAM.replace("_models.sam.", "_models.sam2.").replace("Sam\n", "Sam2 as Sam\n")},
        host=_FROM_OPENCV,
        size=1024,
        load=(
            "osam has its models in its code. With this folder on Python's path, `import osam_model` adds this one;",
            "then `osam.apis.generate` with a `GenerateRequest` of the model `$NAME:latest` runs it.",
            "The import copies the files to osam's cache. labelme's menu lists osam's own models only.",
            _STRETCHED,
        ),
    ),
    _sam2(
        name="darktable",
        title="darktable",
        read="darktable 5.6, 085d5df (src/common/ai/segmentation.c)",
        files={
            "$NAME/encoder.onnx": _named(adapters.encoder("embed fine middle"), *_NAMES),
            "$NAME/decoder.onnx": _named(adapters.FRAME_DECODER, *_NAMES),
        },
        texts={"$NAME/config.json": texts.DARKTABLE},
        host=Host(
            sam_hosts.in_square_darktable,
            "image",
            {"image_embed": "first", "high_res_feats_0": "second", "high_res_feats_1": "third", **_PROMPT},
            sam_hosts.out_of_square_darktable,
        ),
        size=1024,
        load=(
            "Zip the folder `$NAME` as `$NAME.dtmodel` and install it in darktable's preferences, AI.",
            "darktable keeps a picture's proportions and pads with zeros, where SAM 2 stretches; it scales between",
            "four neighbours without widening and lays the mask's corners on the picture's. Masks differ by as much.",
            "Then it moves edges to those of the picture, which is not in the table below.",
        ),
    ),
    _sam2(
        name="rectlabel",
        title="RectLabel",
        read="sam-cpp-macos d739926 (sam.cpp, SAM2) and 3f774e0 (test.cpp)",
        files={
            "${NAME}_preprocess.onnx": _named(adapters.encoder("embed fine middle"), *_OSAM_NAMES),
            "${NAME}.onnx": _named(adapters.BOXES_DECODER, *_OSAM_NAMES),
        },
        host=replace(_FROM_OPENCV, whole=True),
        size=1024,
        load=(
            "In RectLabel load a custom SAM 2 model: `${NAME}_preprocess.onnx` and `${NAME}.onnx`, in one folder.",
            _STRETCHED,
            "Points are cut off to whole pixels of the square. Several boxes may go in one call.",
        ),
    ),
    _sam2(
        name="usls",
        title="usls",
        read="usls 011d883 and 8b7619a (src/models/vision/sam2, sam/config.rs)",
        files={
            "$NAME-encoder.onnx": _named(adapters.encoder("embed fine middle"), *_USLS_NAMES)
            .replace("$STD", ", ".join(map(str, sam_hosts.USLS_STD)))
            .replace("$MEAN", ", ".join(map(str, sam_hosts.USLS_MEAN))),
            "$NAME-decoder.onnx": _named(adapters.USLS_DECODER, *_USLS_NAMES),
        },
        host=Host(
            hosts.in_square_usls,
            "images",
            {
                "image_embeddings": "first",
                "high_res_features_0": "second",
                "high_res_features_1": "third",
                **_PROMPT,
                "orig_im_size": "size",
            },
            hosts.out_of_square_usls,
            padding="never",
        ),
        load=(
            "The model `SAM2` and `Config::sam2_1_tiny()`, or that of another size, with `with_encoder_file` and",
            "`with_decoder_file` of the paths of these files. It leaves out answers scored below its confidence.",
            "usls keeps a picture's proportions and pads with grey 114, where SAM 2 stretches: masks of pictures that",
            "are not square are another model's. Its rounded normalisation is taken back here.",
        ),
    ),
    _sam2(
        name="cvat",
        title="CVAT",
        read="CVAT's plugin for SAM 2 (cvat-ui/plugins/sam2, 9a1e904 and 92d20ac)",
        files={
            "function/encoder.onnx": _named(adapters.encoder("embed fine middle", adapters.PIXELS), *_NAMES),
            "decoder.onnx": _named(adapters.CROPPED_DECODER, *_NAMES),
        },
        texts={"function/function.yaml": texts.CVAT_FUNCTION_2, "function/main.py": texts.CVAT_MAIN_2},
        host=Host(
            hosts.stretched_raw,
            "image",
            {
                "image_embed": "first",
                "high_res_feats_0": "second",
                "high_res_feats_1": "third",
                **_PROMPT,
                "orig_im_size": "size",
            },
            sam_hosts.patched,
            padding="never",
            types={"size": "int32"},
        ),
        size=1024,
        load=(
            "Deploy the folder `function` with nuctl: it has the name that the plugin looks for, of the large model.",
            "Put `decoder.onnx` in the place of the plugin's own (/assets/sam2.1_hiera_large.decoder.onnx).",
            "The plugin scales points by one factor for both axes; the decoder stretches them as SAM 2 does.",
            "The function was not deployed here; its framing is what the table below was measured with.",
        ),
    ),
    _sam2(
        name="transformers-js",
        title="transformers.js",
        tried="the package itself in Node 20 and a 64-pixel model of random weights: masks were those of the rules, IoU"
        " 1.0000, of a picture that sharp need not scale",
        read="@huggingface/transformers 4.3.1 (src/models/sam2, src/models/sam)",
        files={
            "onnx/vision_encoder.onnx": _named(adapters.encoder("fine middle embed"), *_JS_NAMES),
            "onnx/prompt_encoder_mask_decoder.onnx": _named(adapters.TRANSFORMERS_DECODER, *_JS_NAMES),
        },
        texts={
            "config.json": texts.TRANSFORMERS_CONFIG_2,
            "preprocessor_config.json": texts.TRANSFORMERS_PREPROCESSOR_2,
        },
        host=Host(
            hosts.stretched_pixels,
            "pixel_values",
            {
                "image_embeddings.2": "third",
                "image_embeddings.0": "first",
                "image_embeddings.1": "second",
                "input_points": "points",
                "input_labels": "labels",
                "input_boxes": "boxes",
            },
            hosts.best_unstretched,
            padding="never",
            best_of_three=True,
            types={"labels": "int64"},
            shapes={"points": (1, 1, -1, 2), "labels": (1, 1, -1)},
        ),
        graphs=("image_encoder", "mask_decoder"),
        front_matter="library_name: transformers.js\npipeline_tag: mask-generation\ntags:\n- onnx\n- segment-anything",
        load=(
            "`Sam2Model.from_pretrained(path)` and `AutoProcessor.from_pretrained(path)` with this folder's path, or",
            "the name of a repository on the hub that holds it. Several prompts, of points or boxes, go in one call.",
            "Ask for fp32 (`config.json` does): in browsers the default is another file, which is not here.",
            "The answer has the three masks of an ambiguous prompt, of clear prompts, too; take the best score.",
        ),
    ),
)
