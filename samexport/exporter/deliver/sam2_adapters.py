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

_NORMALISED = """
  std = Constant <value = float[1,3,1,1] {$STD}> ()
  mean = Constant <value = float[1,3,1,1] {$MEAN}> ()
  pixels = Mul ($input, std)
  framed = Add (pixels, mean)
"""
PIXELS = """
  framed = Identity ($input)
"""


def encoder(order: str, prepared: str = _NORMALISED) -> str:
    """ONNX text of the encoder.

    Args:
        order: of its outputs, by the names ``embed fine middle``.
        prepared: from ``$input`` to ``framed``, 0..255; it was normalised outside, or is in 0..255 already.
    """
    outputs = ", ".join({"embed": _EMBED, "fine": _FINE, "middle": _MIDDLE}[name] for name in order.split())
    return f"""(float[1,3,$S,$S] $input) => ({outputs}) {{{prepared}
  $embed, $fine, $middle, vision = samexport.image_encoder (framed)
}}"""


_FEATURES = f"({_EMBED}, {_FINE}, {_MIDDLE}"
_INPUTS = (
    _FEATURES
    + """, float[prompts,num_points,2] point_coords,
 float[prompts,num_points] point_labels, float[prompts,1,$L,$L] mask_input, float[1] has_mask_input"""
)

_CLOSED = sam_adapters.closed("""
  kept = Identity (labels_in)
  settled = Identity (padded)
""")
_PROMPTS = (
    _CLOSED
    + """
  zero = Constant <value = float {0}> ()
  unit = Constant <value = float {1}> ()
  one_and_half = Constant <value = float {1.5}> ()
  point_from = Constant <value = float {-0.5}> ()
  rows_and_columns = Constant <value = int64[2] {2, 3}> ()
  is_point = Greater (labels, point_from)
  point_counts = Cast <to = 1> (is_point)
  points = ReduceSum <keepdims = 1> (point_counts, axis1)
  several = Greater (points, one_and_half)
"""
)
_DECODED = """
  flag_in = Clip (has_mask_input, zero, unit)
  no_flags = Sub (points, points)
  flag_rows = Add (no_flags, flag_in)
  flags = Squeeze (flag_rows, axis1)
  no_masks = Unsqueeze (no_flags, rows_and_columns)
  mask_rows = Add (mask_input, no_masks)
  all_masks, all_scores, object_score, object_pointers =
    samexport.mask_decoder_with_mask ($embed, $fine, $middle, coords, labels, mask_rows, flags)
"""
_CHOSEN = """
  from_mask = Constant <value = int64[1] {0}> ()
  first_mask = Slice (all_masks, from_mask, axis1, axis1)
  surely_above = Constant <value = float {$DELTA}> ()
  likely_above = Constant <value = float {-$DELTA}> ()
  surely = Greater (first_mask, surely_above)
  likely = Greater (first_mask, likely_above)
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
_GIVEN = """
  coords_in = Identity (point_coords)
  labels_in = Identity (point_labels)
"""
_ANSWER = _PROMPTS + _DECODED + _CHOSEN

LOW_RES_DECODER = (
    _INPUTS
    + """)
=> (float[prompts,1,$L,$L] masks, float[prompts,1] iou_predictions) {
"""
    + _GIVEN
    + _ANSWER
    + "  masks = Identity (answer)\n}"
)
"""The mask at low resolution, which the program scales to the picture."""

_MASKS, _ONE_MASK = (f"float[{count},1,$L,$L] mask_input" for count in ("prompts", "1"))
USLS_DECODER = (
    LOW_RES_DECODER.replace(")\n=>", ", float[2] orig_im_size)\n=>")
    .replace(_MASKS, _ONE_MASK)
    .replace(
        "  masks = Identity (answer)",
        """
  loud = Constant <value = float {65536}> ()
  masks = Mul (answer, loud)""",
    )
)
"""The same, told a size that it does not need and one absent mask for all prompts; logits are scaled up, since usls
rounds those below 1/255 to nothing."""

FRAME_DECODER = (
    _INPUTS
    + """)
=> (float[prompts,1,$S,$S] masks, float[prompts,1] iou_predictions, float[prompts,1,$L,$L] low_res_masks) {
"""
    + _GIVEN
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
    + _GIVEN
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

BOXES_DECODER = PICTURE_DECODER.replace(_MASKS, _MASKS.replace("prompts", "given_masks"))
"""The same, with one absent mask for all prompts, or one for each."""

CROPPED_DECODER = (
    _INPUTS
    + """, int32[2] orig_im_size)
=> (uint8[1,1,patch_height,patch_width] masks, float[1,1] iou_predictions, float[1,1,$L,$L] low_res_masks,
 int64[1] xtl, int64[1] ytl, int64[1] xbr, int64[1] ybr) {
  sides = Cast <to = 1> (orig_im_size)
  long_side = ReduceMax <keepdims = 1> (sides)
  rows_then_columns = Div (long_side, sides)
  x_then_y = Constant <value = int64[2] {1, 0}> ()
  stretching = Gather <axis = 0> (rows_then_columns, x_then_y)
  coords_in = Mul (point_coords, stretching)
  labels_in = Identity (point_labels)
"""
    + _ANSWER
    + """
  low_res_masks = Identity (answer)
  ones = Constant <value = int64[2] {1, 1}> ()
  picture_hw = Cast <to = 7> (orig_im_size)
  picture_sizes = Concat <axis = 0> (ones, picture_hw)
  picture_mask = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (answer, , , picture_sizes)
"""
    + sam_adapters.RECTANGLE
    + "}"
).replace("[prompts,", "[1,")
"""The mask's rectangle; points were scaled by one factor, and are stretched here as the picture was."""

TRANSFORMERS_DECODER = (
    _FEATURES
    + """, float[1,point_batch,num_points,2] input_points, int64[1,prompts,num_points] input_labels,
 float[1,num_boxes,4] input_boxes)
=> (float[1,prompts,3] iou_scores, float[1,prompts,3,$L,$L] pred_masks, float[1,prompts,1] object_score_logits) {
  first = Constant <value = int64[1] {0}> ()
  one = Constant <value = int64[1] {1}> ()
  two = Constant <value = int64[1] {2}> ()
  three = Constant <value = int64[1] {3}> ()
  corners_of = Constant <value = int64[3] {-1, 2, 2}> ()
  corner_labels = Constant <value = float[1,2] {2, 3}> ()
  point_slot = Constant <value = int64[6] {0, 0, 0, 0, 1, 0}> ()
  label_slot = Constant <value = int64[4] {0, 0, 0, 1}> ()
  nothing = Constant <value = float {-2}> ()
  some = Constant <value = float {0.5}> ()
  ignored_below = Constant <value = float {-5}> ()
  labels_flat = Squeeze (input_labels, first)
  labels_given = Cast <to = 1> (labels_flat)
  ignored = Less (labels_given, ignored_below)
  labels_known = Where (ignored, nothing, labels_given)
  labels_padded = Pad (labels_known, label_slot, nothing)
  slots = Shape (labels_padded)
  points_flat = Squeeze (input_points, first)
  points_padded = Pad (points_flat, point_slot)
  points_sizes = Concat <axis = 0> (slots, two)
  points_of_all = Expand (points_padded, points_sizes)
  prompt_count = Slice (slots, first, one)
  box_sizes = Shape (input_boxes)
  box_count = Slice (box_sizes, one, two)
  missing = Sub (prompt_count, box_count)
  box_slots = Concat <axis = 0> (first, first, missing, first)
  boxes_flat = Squeeze (input_boxes, first)
  boxes_of_all = Pad (boxes_flat, box_slots)
  corners = Reshape (boxes_of_all, corners_of)
  halves = Slice (boxes_flat, first, two, one)
  no_marks = Sub (halves, halves)
  whole = Constant <value = float {1}> ()
  marks = Add (no_marks, whole)
  marks_of_all = Pad (marks, box_slots)
  has_box = Greater (marks_of_all, some)
  labels_of_boxes = Where (has_box, corner_labels, nothing)
  coords_in = Concat <axis = 1> (points_of_all, corners)
  labels_in = Concat <axis = 1> (labels_padded, labels_of_boxes)
"""
    + _CLOSED
    + """
  all_masks, all_scores, object_scores, object_pointers =
    samexport.mask_decoder ($embed, $fine, $middle, coords, labels)
  to_mask = Constant <value = int64[1] {4}> ()
  three_masks = Slice (all_masks, one, to_mask, one)
  three_scores = Slice (all_scores, one, to_mask, one)
  pred_masks = Unsqueeze (three_masks, first)
  iou_scores = Unsqueeze (three_scores, first)
  object_score_logits = Unsqueeze (object_scores, first)
}"""
)
"""Points [1, P, K, 2] or boxes [1, P, 4] or one of each, none as 0 of them; the three masks of an ambiguous prompt."""
