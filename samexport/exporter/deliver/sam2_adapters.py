"""SAM 2's image graphs as other programs call them, in ONNX's text form (:mod:`samexport.exporter.deliver.adapt`).

Every prompt gets SAM 2's padding point, boxes too, and is answered by the rule of
:class:`samexport.runtimes.families.sam2_session.Sam2Session`: the best of masks 1 to 3 for one point, else mask 0, or
the best of the others where mask 0 is unstable. Prompts may come as a batch.
"""

from __future__ import annotations

from samexport.exporter.deliver import sam_adapters
from samexport.exporter.deliver.profile import Values
from samexport.runtimes.bundle import Manifest
from samexport.runtimes.host.object_masks import STABILITY_DELTA, STABILITY_THRESHOLD


def values(manifest: Manifest) -> Values:
    """Sizes and numbers of a model, by the names that the texts have."""
    width = next(g for g in manifest.graphs if g.name == "image_encoder").outputs[0].shape[1]
    assert isinstance(width, int)
    return {
        **sam_adapters.frame_values(manifest.frame),
        "C": str(width),
        "C0": str(width // 8),
        "C1": str(width // 4),
        "E": str(manifest.frame.size // 8),
        "DELTA": f"{STABILITY_DELTA:g}",
        "STABLE": f"{STABILITY_THRESHOLD:g}",
    }


_EMBED, _FINE, _MIDDLE = "float[1,$C,$G,$G] $embed", "float[1,$C0,$L,$L] $fine", "float[1,$C1,$E,$E] $middle"


def encoder(order: str) -> str:
    """ONNX text of the encoder: normalised outside; ``order`` of its outputs, by the names ``embed fine middle``."""
    outputs = ", ".join({"embed": _EMBED, "fine": _FINE, "middle": _MIDDLE}[name] for name in order.split())
    return f"""(float[1,3,$S,$S] $input) => ({outputs}) {{
  std = Constant <value = float[1,3,1,1] {{$STD}}> ()
  mean = Constant <value = float[1,3,1,1] {{$MEAN}}> ()
  pixels = Mul ($input, std)
  framed = Add (pixels, mean)
  $embed, $fine, $middle, vision = samexport.image_encoder (framed)
}}"""


_INPUTS = f"""({_EMBED}, {_FINE}, {_MIDDLE}, float[prompts,num_points,2] point_coords,
 float[prompts,num_points] point_labels, float[prompts,1,$L,$L] mask_input, float[1] has_mask_input"""

_ANSWER = """
  axis1 = Constant <value = int64[1] {1}> ()
  rows_and_columns = Constant <value = int64[2] {2, 3}> ()
  zero = Constant <value = float {0}> ()
  unit = Constant <value = float {1}> ()
  half = Constant <value = float {0.5}> ()
  one_and_half = Constant <value = float {1.5}> ()
  point_from = Constant <value = float {-0.5}> ()
  padding = Constant <value = float {-1}> ()
  absent = Constant <value = float {-2}> ()
  one_slot = Constant <value = int64[6] {0, 0, 0, 0, 1, 0}> ()
  is_padding = Equal (point_labels, padding)
  padding_counts = Cast <to = 1> (is_padding)
  paddings = ReduceSum <keepdims = 1> (padding_counts, axis1)
  padded = Greater (paddings, half)
  last = Where (padded, absent, padding)
  labels = Concat <axis = 1> (point_labels, last)
  coords = Pad (point_coords, one_slot)
  is_point = Greater (point_labels, point_from)
  point_counts = Cast <to = 1> (is_point)
  points = ReduceSum <keepdims = 1> (point_counts, axis1)
  several = Greater (points, one_and_half)
  flag_in = Clip (has_mask_input, zero, unit)
  no_flags = Sub (points, points)
  flag_rows = Add (no_flags, flag_in)
  flags = Squeeze (flag_rows, axis1)
  all_masks, all_scores, object_score, object_pointers =
    samexport.mask_decoder_with_mask ($embed, $fine, $middle, coords, labels, mask_input, flags)
  from_mask = Constant <value = int64[1] {0}> ()
  first_mask = Slice (all_masks, from_mask, axis1, axis1)
  above = Constant <value = float {$DELTA}> ()
  below = Constant <value = float {-$DELTA}> ()
  surely = Greater (first_mask, above)
  likely = Greater (first_mask, below)
  surely_counts = Cast <to = 1> (surely)
  likely_counts = Cast <to = 1> (likely)
  inner = ReduceSum <keepdims = 0> (surely_counts, rows_and_columns)
  outer = ReduceSum <keepdims = 0> (likely_counts, rows_and_columns)
  stable_share = Constant <value = float {$STABLE}> ()
  least = Mul (outer, stable_share)
  unstable = Less (inner, least)
  stable = Not (unstable)
  clear = And (several, stable)
  clear_row = Constant <value = float[1,4] {0, -1000, -1000, -1000}> ()
  vague_row = Constant <value = float[1,4] {-1000, 0, 0, 0}> ()
  bonus = Where (clear, clear_row, vague_row)
  ranked = Add (all_scores, bonus)
  best_of = ArgMax <axis = 1, keepdims = 0> (ranked)
  depth = Constant <value = int64 {4}> ()
  off_on = Constant <value = float[2] {0, 1}> ()
  chosen = OneHot <axis = 1> (best_of, depth, off_on)
  chosen_masks = Unsqueeze (chosen, rows_and_columns)
  only_masks = Mul (all_masks, chosen_masks)
  only_scores = Mul (all_scores, chosen)
  answer = ReduceSum <keepdims = 1> (only_masks, axis1)
  iou_predictions = ReduceSum <keepdims = 1> (only_scores, axis1)
"""

LOW_RES_DECODER = (
    _INPUTS
    + """)
=> (float[prompts,1,$L,$L] masks, float[prompts,1] iou_predictions) {
"""
    + _ANSWER
    + "  masks = Identity (answer)\n}"
)
"""The mask at low resolution, which the program scales to the picture."""

FRAME_DECODER = (
    _INPUTS
    + """)
=> (float[prompts,1,$S,$S] masks, float[prompts,1] iou_predictions, float[prompts,1,$L,$L] low_res_masks) {
"""
    + _ANSWER
    + """
  low_res_masks = Identity (answer)
  scales = Constant <value = float[4] {1, 1, 4, 4}> ()
  masks = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (answer, , scales)
}"""
).replace("[prompts,", "[1,")
"""The mask at the size of the frame; one prompt, since the program wants whole numbers as sizes."""

PICTURE_DECODER = (
    _INPUTS
    + """, int64[2] orig_im_size)
=> (float[prompts,1,height,width] masks, float[prompts,1] iou_predictions, float[prompts,1,$L,$L] low_res_masks) {
"""
    + _ANSWER
    + """
  low_res_masks = Identity (answer)
  sizes = Shape (answer)
  outer_to = Constant <value = int64[1] {2}> ()
  outer_sizes = Slice (sizes, from_mask, outer_to)
  picture_sizes = Concat <axis = 0> (outer_sizes, orig_im_size)
  masks = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (answer, , , picture_sizes)
}"""
)
"""The mask at the size of the picture, which was stretched."""
