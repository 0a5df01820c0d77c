"""Programs that take models of SAM's family, as data. Facts were read in the programs' own code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from samexport.exporter.deliver import sam_adapters as adapters
from samexport.exporter.deliver import sam_hosts as hosts
from samexport.exporter.deliver import sam_texts as texts
from samexport.exporter.deliver.profile import Host, Profile, Role

_OFFICIAL: Mapping[str, Role] = {
    "image_embeddings": "first",
    "point_coords": "points",
    "point_labels": "labels",
    "mask_input": "mask",
    "has_mask_input": "has mask",
    "orig_im_size": "size",
}
_CANVAS = Host(hosts.in_canvas, "input_image", _OFFICIAL, hosts.out_of_canvas)
_CANVAS_DIFFERS = (
    "Pictures are scaled into 684x1024 without widening the filter: large photos become coarser than in SAM, tall ones",
    "smaller, and what they do not fill is black. Masks differ by as much; the table below has an example.",
)


def _named(text: str, given: str, made: str) -> str:
    return text.replace("$input", given).replace("$output", made)


def _square(size: int) -> tuple[int, int]:
    return size, size


_MODEL_CLASS = "its own model class and MobileSAM with demo weights: the masks were those of the rules, IoU 1.0000"
_HWC = _named(adapters.HWC, "input_image", "image_embeddings")
_sam = partial(Profile, values=adapters.values)
_canvas = partial(
    _sam,
    host=_CANVAS,
    same_hw=adapters.canvas,
    files={"$NAME.encoder.onnx": _HWC, "$NAME.decoder.onnx": adapters.DECODER},
)

PROFILES = (
    _canvas(
        name="anylabeling",
        title="AnyLabeling",
        tried=_MODEL_CLASS,
        read="AnyLabeling 0.4.43 (services/auto_labeling/sam_onnx.py, segment_anything.py)",
        texts={"config.yaml": texts.ANYLABELING},
        load=(
            "In AnyLabeling choose Auto Labeling, Load Custom Model, and open `config.yaml` of this folder.",
            "Click (Point+, Point-) or draw a box (Rect), then Finish Object.",
            *_CANVAS_DIFFERS,
        ),
    ),
    _canvas(
        name="x-anylabeling",
        title="X-AnyLabeling",
        tried=_MODEL_CLASS,
        read="X-AnyLabeling 4.2.1 (services/auto_labeling/sam_onnx.py, segment_anything.py)",
        texts={"config.yaml": texts.ANYLABELING},
        load=(
            "In X-AnyLabeling's list of models choose Load Custom Model and open `config.yaml` of this folder.",
            "Click (Point+, Point-) or draw a box (Rect), then Finish Object.",
            *_CANVAS_DIFFERS,
        ),
    ),
    _canvas(
        name="mobile-sam-pair",
        title="programs that look for the de-facto MobileSAM pair",
        read="the names and inputs that ten code bases share (mobile_sam_20230629.zip), and AnyLabeling 0.4.43",
        files={"mobile_sam.encoder.onnx": _HWC, "sam_vit_h_4b8939.decoder.onnx": adapters.DECODER},
        load=(
            "Put both files where the program has its own of the same names; keep those, to be able to go back.",
            "The encoder takes rows, columns, channels in 0..255 of any size up to 1024x1024, 684x1024 among them.",
            *_CANVAS_DIFFERS,
        ),
    ),
    _sam(
        name="osam",
        title="osam, the model runner of labelme",
        tried="osam itself and MobileSAM with demo weights: its masks were samexport's, IoU 1.0000",
        read="osam 0.8.1 (osam/_models/sam/_models.py)",
        files={
            "encoder.onnx": _named(adapters.NORMALISED, "x", "image_embeddings"),
            "decoder.onnx": adapters.DECODER,
        },
        texts={"osam_model.py": texts.OSAM},
        host=Host(hosts.in_square, "x", _OFFICIAL, hosts.first_mask, absent=-1.0),
        same_hw=_square,
        load=(
            "osam has its models in its code. With this folder on Python's path, `import osam_model` adds this one;",
            "then `osam.apis.generate` with a `GenerateRequest` of the model `$NAME:latest` runs it.",
            "The import copies the files to osam's cache. labelme's menu lists osam's own models only.",
        ),
    ),
    _sam(
        name="cvat",
        title="CVAT",
        read="CVAT's plugin for SAM and its serverless function (cvat-ui/plugins/sam, serverless/pytorch/"
        "facebookresearch/sam; 2024 to 2026)",
        files={
            "function/encoder.onnx": _named(adapters.PIXELS, "image", "image_embeddings"),
            "decoder.onnx": adapters.CROPPED_DECODER,
        },
        texts={"function/function.yaml": texts.CVAT_FUNCTION, "function/main.py": texts.CVAT_MAIN},
        host=Host(hosts.in_square_raw, "image", _OFFICIAL, hosts.patched, padding="never", prompts="points"),
        same_hw=_square,
        load=(
            "Deploy the folder `function` with nuctl in place of CVAT's own function for SAM, whose name it has: the",
            "plugin looks for that name. Put `decoder.onnx` in the place of the plugin's own (/assets/decoder.onnx).",
            "Points scale by one factor for both axes, half a pixel off in long, thin pictures.",
            "The function was not deployed here; its framing is what the table below was measured with.",
        ),
    ),
    _sam(
        name="darktable",
        title="darktable",
        read="darktable 5.6, 085d5df (src/common/ai/segmentation.c)",
        files={
            "$NAME/encoder.onnx": _named(adapters.NORMALISED, "image", "image_embed"),
            "$NAME/decoder.onnx": adapters.FRAME_DECODER,
        },
        texts={"$NAME/config.json": texts.DARKTABLE},
        host=Host(
            hosts.in_square_darktable,
            "image",
            {"image_embed": "first", **{n: r for n, r in _OFFICIAL.items() if r not in ("first", "size")}},
            hosts.out_of_square_darktable,
        ),
        same_hw=_square,
        load=(
            "Zip the folder `$NAME` as `$NAME.dtmodel` and install it in darktable's preferences, AI.",
            "darktable calls the kind of model sam2 for SAM as well; the file says so.",
            "It scales between four neighbours without widening and lays the mask's corners on the picture's corners,",
            "so that masks shift by up to a pixel; then it moves edges to those of the picture (not in the table).",
        ),
    ),
    _sam(
        name="usls",
        title="usls",
        read="usls 378ef43 and 011d883 (src/models/vision/sam)",
        files={
            "mobile-sam-vit-t-encoder.onnx": _named(adapters.NORMALISED, "images", "image_embeddings")
            .replace("$STD", ", ".join(map(str, hosts.USLS_STD)))
            .replace("$MEAN", ", ".join(map(str, hosts.USLS_MEAN))),
            "mobile-sam-vit-t-decoder.onnx": adapters.DECODER,
        },
        host=Host(hosts.in_square_usls, "images", _OFFICIAL, hosts.first_mask, padding="never"),
        same_hw=_square,
        size=None,
        load=(
            "`Config::mobile_sam_tiny()` with `with_encoder_file` and `with_decoder_file` of the paths of these files.",
            "usls normalises with rounded numbers of its own, which the encoder here takes back.",
            "It pads with grey 114 where SAM has nothing; masks of pictures that are not square differ by as much.",
        ),
    ),
    _sam(
        name="rectlabel",
        title="RectLabel",
        read="sam-cpp-macos 080c941 and d739926 (sam.cpp, SAM 1)",
        files={
            "${NAME}_preprocess.onnx": _named(adapters.UINT8, "input", "output"),
            "${NAME}.onnx": adapters.DECODER,
        },
        host=Host(hosts.in_rectangle, "input", _OFFICIAL, hosts.out_of_rectangle, padding="never"),
        same_hw=adapters.canvas,
        load=(
            "In RectLabel load a custom SAM model: `${NAME}_preprocess.onnx` and `${NAME}.onnx`, in one folder.",
            "The program stretches pictures to the size in the file, 684x1024: 3:2 photos keep their proportions,",
            "others do not, which the model was not trained for. It adds no padding point; the decoder here does.",
        ),
    ),
    _sam(
        name="transformers-js",
        title="transformers.js",
        tried="the package itself in Node 20 and MobileSAM with demo weights: IoU at least 0.9945 with samexport's"
        " masks, since sharp scales the picture there, not Pillow",
        read="@huggingface/transformers 4.3.1 (src/models/sam)",
        files={
            "onnx/vision_encoder.onnx": _named(adapters.TRANSFORMERS_ENCODER, "pixel_values", "image_embeddings"),
            "onnx/prompt_encoder_mask_decoder.onnx": adapters.TRANSFORMERS_DECODER,
        },
        texts={"config.json": texts.TRANSFORMERS_CONFIG, "preprocessor_config.json": texts.TRANSFORMERS_PREPROCESSOR},
        host=Host(
            hosts.in_square,
            "pixel_values",
            {"image_embeddings": "first", "input_points": "points", "input_labels": "labels"},
            hosts.best_of_three,
            padding="never",
            prompts="points",
            best_of_three=True,
            types={"labels": "int64"},
            shapes={"points": (1, 1, -1, 2), "labels": (1, 1, -1)},
        ),
        same_hw=_square,
        graphs=("encoder", "decoder"),
        size=None,
        front_matter="library_name: transformers.js\npipeline_tag: mask-generation\ntags:\n- onnx\n- segment-anything",
        load=(
            "`SamModel.from_pretrained(path)` and `AutoProcessor.from_pretrained(path)` with this folder's path, or",
            "the name of a repository on the hub that holds it. Prompts are points; several go in one call.",
            "Ask for fp32 (`config.json` does): in browsers the default is another file, which is not here.",
            "The answer has the three masks of an ambiguous prompt; take the best score.",
        ),
    ),
    _sam(
        name="model-api",
        title="model_api (OpenVINO, Geti)",
        tried="the package itself, OpenVINO 2026.4, and MobileSAM with demo weights: IoU at least 0.9974 with the masks"
        " of the rules",
        read="openvino-model-api 0.4.7 (model_api/models/sam_models.py, visual_prompting.py)",
        files={
            "encoder.onnx": _named(adapters.PIXELS, "image", "image_embeddings"),
            "decoder.onnx": adapters.OPENVINO_DECODER,
        },
        metadata={
            "encoder.onnx": {
                "model_info model_type": "sam_image_encoder",
                "model_info resize_type": "fit_to_window",
                "model_info pad_value": str(hosts.OPENVINO_PADDING),
                "model_info image_size": "1024",
            },
            "decoder.onnx": {"model_info model_type": "sam_decoder", "model_info image_size": "1024"},
        },
        host=Host(
            hosts.in_square_openvino,
            "image",
            {**{n: r for n, r in _OFFICIAL.items() if r != "size"}, "orig_size": "size"},
            hosts.best_after_first,
            padding="never",
            prompts="point or box",
            best_of_three=True,
            types={"size": "int64"},
            shapes={"has mask": (1, 1), "size": (1, 2)},
        ),
        same_hw=_square,
        load=(
            "`SAMVisualPrompter(SAMImageEncoder.create_model(...), SAMDecoder.create_model(...))` of both files, which",
            "name their type and preprocessing. It needs the package onnx beside OpenVINO.",
            "Pictures are scaled between neighbours without widening and padded with one grey instead of SAM's mean.",
            "It takes the best of masks 1 to 3 for boxes too.",
        ),
    ),
    _sam(
        name="ai-hub",
        title="Qualcomm AI Hub",
        tried="qai_hub_models' SAMApp on the processor and MobileSAM with demo weights: the masks were samexport's, IoU"
        " at least 0.9999",
        read="qai_hub_models 0.65.0 (models/mobilesam, models/templates/sam)",
        files={
            "encoder.onnx": _named(adapters.SHARE, "image", "image_embeddings"),
            "decoder.onnx": adapters.LOW_RES_DECODER,
        },
        host=Host(
            hosts.in_square_share,
            "image",
            {n: r for n, r in _OFFICIAL.items() if r in ("first", "points", "labels")},
            hosts.only_low_res,
            padding="never",
            prompts="points",
        ),
        same_hw=_square,
        graphs=("encoder", "decoder"),
        size=None,
        load=(
            "Upload each file to AI Hub Workbench and compile it with sizes for every axis: `image` 1x3x${S}x${S},",
            "`image_embeddings` 1x${C}x${G}x${G}, `point_coords` 1xNx2, `point_labels` 1xN; AI Hub's own has N = 1.",
            "Or give both to qai_hub_models' SAMApp 0.65.0 as encoder and decoder; its `ResizeLongestSide` must not be",
            "that of segment-anything 1.0, which takes batch and channels of a tensor as the picture's size.",
            "AI Hub changes layers for its NPU; here they are as in the bundle. No Qualcomm device was tried.",
        ),
    ),
)
