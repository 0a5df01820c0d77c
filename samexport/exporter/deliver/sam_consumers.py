"""Programs that take models of SAM's family, as data. Facts were read in the programs' own code."""

from __future__ import annotations

from samexport.exporter.deliver import sam_adapters as adapters
from samexport.exporter.deliver import sam_hosts as hosts
from samexport.exporter.deliver.profile import Host, Profile, Role

_OFFICIAL: dict[str, Role] = {
    "image_embeddings": "embeddings",
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
_ANYLABELING = """type: segment_anything
name: $NAME
display_name: $SUMMARY
encoder_model_path: $NAME.encoder.onnx
decoder_model_path: $NAME.decoder.onnx
input_size: 1024
max_width: 1024
max_height: 682
"""
_HWC = adapters.HWC.replace("$input", "input_image").replace("$output", "image_embeddings")

PROFILES = (
    Profile(
        name="anylabeling",
        title="AnyLabeling",
        read="AnyLabeling 0.4.43 (services/auto_labeling/sam_onnx.py, segment_anything.py)",
        files={"$NAME.encoder.onnx": _HWC, "$NAME.decoder.onnx": adapters.DECODER},
        texts={"config.yaml": _ANYLABELING},
        host=_CANVAS,
        same_hw=adapters.canvas,
        values=adapters.values,
        load=(
            "In AnyLabeling choose Auto Labeling, Load Custom Model, and open `config.yaml` of this folder.",
            "Click (Point+, Point-) or draw a box (Rect), then Finish Object.",
            *_CANVAS_DIFFERS,
        ),
    ),
    Profile(
        name="mobile-sam-pair",
        title="programs that look for the de-facto MobileSAM pair",
        read="the names and inputs that ten code bases share (mobile_sam_20230629.zip), and AnyLabeling 0.4.43",
        files={"mobile_sam.encoder.onnx": _HWC, "sam_vit_h_4b8939.decoder.onnx": adapters.DECODER},
        host=_CANVAS,
        same_hw=adapters.canvas,
        values=adapters.values,
        load=(
            "Put both files where the program has its own of the same names; keep those, to be able to go back.",
            "The encoder takes rows, columns, channels in 0..255 of any size up to 1024x1024, 684x1024 among them.",
            *_CANVAS_DIFFERS,
        ),
    ),
)
