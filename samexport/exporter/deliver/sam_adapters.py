"""SAM's graphs as other programs call them, in ONNX's text form (:mod:`samexport.exporter.deliver.adapt`).

The official decoder (facebookresearch/segment-anything, ``segment_anything/utils/onnx.py``) scales masks to the picture
and, asked to, answers with one mask. Programs differ in whether they add SAM's padding point, and some add it beside a
box, where SAM's own predictor does not. Here the files put it right, so that every program gets the mask of the rule in
:func:`samexport.runtimes.host.sam_prompts.select_mask`.
"""

from __future__ import annotations

from collections.abc import Iterable

from samexport.exporter.deliver.profile import Values
from samexport.models.spec import Preprocess
from samexport.runtimes.bundle import Manifest

_CANVAS = 684 / 1024
_RANKED = 1000.0


def canvas(size: int) -> tuple[int, int]:
    """Height and width of the de-facto pair's picture: 684x1024 at 1024."""
    return int(_CANVAS * size + 0.5), size


def values(manifest: Manifest) -> Values:
    """Sizes and numbers of a model, by the names that the texts have."""
    frame = manifest.frame
    trained = manifest.mask_outputs
    vague = [index for index in trained if index] or [0]
    embeddings = next(g for g in manifest.graphs if g.name == "encoder").outputs[0]
    return {
        **frame_values(frame),
        "C": str(embeddings.shape[1]),
        "CH": str(canvas(frame.size)[0]),
        "BELOW": str(frame.size - canvas(frame.size)[0]),
        # added to the scores, so that the best one is the mask that answers
        "CLEAR": _row([0 if i in ([0] if 0 in trained else vague) else -_RANKED for i in range(4)]),
        "VAGUE": _row([0 if i in vague else -_RANKED for i in range(4)]),
    }


def frame_values(frame: Preprocess) -> Values:
    """Sides of the frame, of the embedding and of masks at low resolution; mean and deviation."""
    return {
        "S": str(frame.size),
        "G": str(frame.grid),
        "L": str(frame.low_res),
        "MEAN": _row(frame.mean),
        "STD": _row(frame.std),
    }


def _row(numbers: Iterable[float]) -> str:
    return ", ".join(f"{n:.9g}" for n in numbers)


NORMALISED = """(float[1,3,$S,$S] $input) => (float[1,$C,$G,$G] $output) {
  std = Constant <value = float[1,3,1,1] {$STD}> ()
  mean = Constant <value = float[1,3,1,1] {$MEAN}> ()
  pixels = Mul ($input, std)
  framed = Add (pixels, mean)
  $output = samexport.encoder (framed)
}"""
"""Normalised outside, zeros as padding: those become the mean, as our encoder takes it."""

HWC = """(float[height,width,3] $input) => (float[1,$C,$G,$G] $output) {
  mean = Constant <value = float[3,1,1] {$MEAN}> ()
  frame = Constant <value = int64[3] {3, $S, $S}> ()
  start = Constant <value = int64[3] {0, 0, 0}> ()
  first = Constant <value = int64[1] {0}> ()
  channels = Transpose <perm = [2, 0, 1]> ($input)
  centred = Sub (channels, mean)
  sizes = Shape (channels)
  room = Sub (frame, sizes)
  pads = Concat <axis = 0> (start, room)
  padded = Pad (centred, pads)
  pixels = Add (padded, mean)
  framed = Unsqueeze (pixels, first)
  $output = samexport.encoder (framed)
}"""
"""Rows, columns, channels, 0..255, any height and width up to the frame's; the rest is filled up here."""

UINT8 = """(uint8[1,3,$CH,$S] $input) => (float[1,$C,$G,$G] $output) {
  mean = Constant <value = float[1,3,1,1] {$MEAN}> ()
  pads = Constant <value = int64[8] {0, 0, 0, 0, 0, 0, $BELOW, 0}> ()
  pixels = Cast <to = 1> ($input)
  centred = Sub (pixels, mean)
  padded = Pad (centred, pads)
  framed = Add (padded, mean)
  $output = samexport.encoder (framed)
}"""
"""Whole numbers in 0..255 of one size, 684x1024 at 1024; the rest is filled up here."""

PIXELS = """(float[1,3,$S,$S] $input) => (float[1,$C,$G,$G] $output) {
  $output = samexport.encoder ($input)
}"""
"""0..255, as the bundle has it."""

SHARE = """(float[1,3,$S,$S] $input) => (float[1,$C,$G,$G] $output) {
  white = Constant <value = float {255}> ()
  framed = Mul ($input, white)
  $output = samexport.encoder (framed)
}"""
"""0..1, the mean as padding."""

TRANSFORMERS_ENCODER = NORMALISED.replace(") {", ", float[1,1,1,1] image_positional_embeddings) {").replace(
    "\n}", "\n  image_positional_embeddings = Constant <value = float[1,1,1,1] {0}> ()\n}"
)
"""transformers.js encodes anew on every call unless the encoder returns positional embeddings; our decoder has them."""

_COUNTED = """
  axis1 = Constant <value = int64[1] {1}> ()
  half = Constant <value = float {0.5}> ()
  padding = Constant <value = float {-1}> ()
  absent = Constant <value = float {-2}> ()
  one_slot = Constant <value = int64[6] {0, 0, 0, 0, 1, 0}> ()
  is_padding = Equal (labels_in, padding)
  padding_counts = Cast <to = 1> (is_padding)
  paddings = ReduceSum <keepdims = 1> (padding_counts, axis1)
  padded = Greater (paddings, half)
"""
_CLOSED = """
  last = Where (settled, absent, padding)
  labels = Concat <axis = 1> (kept, last)
  coords = Pad (coords_in, one_slot)
"""


def closed(rule: str) -> str:
    """ONNX text that closes ``coords_in`` [N, K, 2] and ``labels_in`` [N, K] with a padding point where one is due.

    Args:
        rule: from ``padded`` (a prompt has one already) to ``settled`` (it needs none) and ``kept``, its labels.
    """
    return _COUNTED + rule + _CLOSED


PROMPTS = closed("""
  corner = Constant <value = float {1.5}> ()
  live_from = Constant <value = float {-1.5}> ()
  is_corner = Greater (labels_in, corner)
  corner_counts = Cast <to = 1> (is_corner)
  corners = ReduceSum <keepdims = 1> (corner_counts, axis1)
  boxed = Greater (corners, half)
  beside_box = And (is_padding, boxed)
  kept = Where (beside_box, absent, labels_in)
  settled = Or (boxed, padded)
""")
"""``coords_in`` and ``labels_in`` to prompts with SAM's padding point where SAM's predictor has it."""

_DECODED = """
  zero = Constant <value = float {0}> ()
  unit = Constant <value = float {1}> ()
  flag = Clip (has_mask, zero, unit)
  all_masks, all_scores = samexport.decoder_with_mask (embeddings, coords, labels, mask_input, flag)
"""
_CHOSEN = """
  two_and_half = Constant <value = float {2.5}> ()
  clear_row = Constant <value = float[1,4] {$CLEAR}> ()
  vague_row = Constant <value = float[1,4] {$VAGUE}> ()
  is_live = Greater (labels, live_from)
  live_counts = Cast <to = 1> (is_live)
  tokens = ReduceSum <keepdims = 1> (live_counts, axis1)
  many = Greater (tokens, two_and_half)
  clear = Or (many, boxed)
  bonus = Where (clear, clear_row, vague_row)
  ranked = Add (all_scores, bonus)
  best_of = ArgMax <axis = 1, keepdims = 0> (ranked)
  low_res_masks = Gather <axis = 1> (all_masks, best_of)
  iou_predictions = Gather <axis = 1> (all_scores, best_of)
"""
ANSWER = _DECODED + _CHOSEN
"""One prompt to the one mask that answers it."""

FRAME = """
  frame_sizes = Constant <value = int64[4] {1, 1, $S, $S}> ()
  whole = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (low_res_masks, , , frame_sizes)
"""
"""The mask at the frame's size."""

PICTURE = (
    FRAME
    + """
  side = Constant <value = double {$S}> ()
  rounding = Constant <value = double {0.5}> ()
  least = Constant <value = double {1}> ()
  ones = Constant <value = int64[2] {1, 1}> ()
  corner_at = Constant <value = int64[2] {0, 0}> ()
  rows_and_columns = Constant <value = int64[2] {2, 3}> ()
  picture_exact = Cast <to = 11> (size)
  long_side = ReduceMax <keepdims = 0> (picture_exact)
  scale = Div (side, long_side)
  scaled = Mul (picture_exact, scale)
  raised = Add (scaled, rounding)
  rounded = Floor (raised)
  at_least = Max (rounded, least)
  inside = Cast <to = 7> (at_least)
  cropped = Slice (whole, corner_at, inside, rows_and_columns)
  picture_hw = Cast <to = 7> (size)
  picture_sizes = Concat <axis = 0> (ones, picture_hw)
  picture_mask = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel">
    (cropped, , , picture_sizes)
"""
)
"""The mask at the size ``size`` [2] of the picture, as SAM's predictor scales it."""

RECTANGLE = """
  above = Greater (picture_mask, zero)
  inside_counts = Cast <to = 1> (above)
  over_columns = Constant <value = int64[3] {0, 1, 3}> ()
  over_rows = Constant <value = int64[3] {0, 1, 2}> ()
  row_sums = ReduceSum <keepdims = 0> (inside_counts, over_columns)
  column_sums = ReduceSum <keepdims = 0> (inside_counts, over_rows)
  row_flags = Clip (row_sums, zero, unit)
  column_flags = Clip (column_sums, zero, unit)
  ytl = ArgMax <axis = 0, keepdims = 1> (row_flags)
  xtl = ArgMax <axis = 0, keepdims = 1> (column_flags)
  ybr = ArgMax <axis = 0, keepdims = 1, select_last_index = 1> (row_flags)
  xbr = ArgMax <axis = 0, keepdims = 1, select_last_index = 1> (column_flags)
  patch_from = Concat <axis = 0> (ytl, xtl)
  patch_to_inclusive = Concat <axis = 0> (ybr, xbr)
  patch_to = Add (patch_to_inclusive, ones)
  patch = Slice (inside_counts, patch_from, patch_to, rows_and_columns)
  white = Constant <value = float {255}> ()
  bright = Mul (patch, white)
  masks = Cast <to = 2> (bright)
"""
"""``picture_mask`` to its rectangle in 0 and 255, and where that lies."""

_INPUTS = """(float[1,$C,$G,$G] $embeddings, float[1,num_points,2] point_coords, float[1,num_points] point_labels,
 float[1,1,$L,$L] mask_input, """
_ONE_MASK = "float[1,1] iou_predictions, float[1,1,$L,$L] low_res_masks) {"
_PREPARED = (
    """
  embeddings = Identity ($embeddings)
  coords_in = Identity (point_coords)
  labels_in = Identity (point_labels)
"""
    + PROMPTS
    + """
  one = Constant <value = int64[1] {1}> ()
  has_mask = Reshape (has_mask_input, one)
"""
)
_BODY = _PREPARED + ANSWER
_OFFICIAL = _INPUTS + "float[1] has_mask_input, float[2] orig_im_size)\n=> ($masks, " + _ONE_MASK + _BODY
_TWO = """
  size = Identity (orig_im_size)
"""

DECODER = (
    _OFFICIAL.replace("$masks", "float[1,1,height,width] masks").replace("$embeddings", "image_embeddings")
    + _TWO
    + PICTURE
    + "  masks = Identity (picture_mask)\n}"
)
"""The official decoder in single-mask mode: names, order, types."""

FRAME_DECODER = (
    _INPUTS.replace("$embeddings", "image_embed")
    + "float[1] has_mask_input)\n=> (float[1,1,$S,$S] masks, "
    + _ONE_MASK
    + _BODY.replace("$embeddings", "image_embed")
    + FRAME
    + "  masks = Identity (whole)\n}"
)
"""Without the picture's size: the mask has the frame's."""

CROPPED_DECODER = (
    _OFFICIAL.replace(
        "$masks, float[1,1] iou_predictions, float[1,1,$L,$L] low_res_masks",
        "uint8[1,1,patch_height,patch_width] masks, float[1,1] iou_predictions, "
        "float[1,1,$L,$L] low_res_masks, int64[1] xtl, int64[1] ytl, int64[1] xbr, int64[1] ybr",
    ).replace("$embeddings", "image_embeddings")
    + _TWO
    + PICTURE
    + RECTANGLE
    + "}"
)
"""The mask's rectangle alone, 0 and 255, and where it lies, last row and column included."""

LOW_RES_DECODER = (
    """(float[1,$C,$G,$G] image_embeddings, float[1,num_points,2] point_coords, float[1,num_points] point_labels)
=> (float[1,1,$L,$L] masks, float[1,1] scores) {
  coords_in = Identity (point_coords)
  labels_in = Identity (point_labels)
"""
    + PROMPTS
    + "  all_masks, all_scores = samexport.decoder (image_embeddings, coords, labels)\n"
    + _CHOSEN
    + """
  masks = Identity (low_res_masks)
  scores = Identity (iou_predictions)
}"""
)
"""Neither earlier masks nor sizes: the mask at low resolution, which the program scales to the picture."""

OPENVINO_DECODER = (
    _INPUTS.replace("$embeddings", "image_embeddings")
    + """float[1,1] has_mask_input, int64[1,2] orig_size)
=> (float[1,4,height,width] upscaled_masks, float[1,4] iou_predictions, float[1,4,$L,$L] low_res_masks) {
"""
    + _PREPARED.replace("$embeddings", "image_embeddings")
    + """
  zero = Constant <value = float {0}> ()
  unit = Constant <value = float {1}> ()
  flag = Clip (has_mask, zero, unit)
  low_res_masks, iou_predictions = samexport.decoder_with_mask (embeddings, coords, labels, mask_input, flag)
  two = Constant <value = int64[1] {2}> ()
  size = Reshape (orig_size, two)
"""
    + PICTURE.replace("{1, 1, $S, $S}", "{1, 4, $S, $S}").replace("int64[2] {1, 1}", "int64[2] {1, 4}")
    + "  upscaled_masks = Identity (picture_mask)\n}"
)
"""model_api's names and types; it takes the best of masks 1 to 3 itself."""

TRANSFORMERS_DECODER = (
    """(float[1,$C,$G,$G] image_embeddings, float[1,point_batch,num_points,2] input_points,
 int64[1,point_batch,num_points] input_labels)
=> (float[1,point_batch,3] iou_scores, float[1,point_batch,3,$L,$L] pred_masks) {
  first = Constant <value = int64[1] {0}> ()
  coords_in = Squeeze (input_points, first)
  labels_flat = Squeeze (input_labels, first)
  labels_given = Cast <to = 1> (labels_flat)
  ignored_below = Constant <value = float {-5}> ()
  ignored = Less (labels_given, ignored_below)
  labels_in = Where (ignored, absent_label, labels_given)
"""
    + PROMPTS
    + """
  all_masks, all_scores = samexport.decoder (image_embeddings, coords, labels)
  from_mask = Constant <value = int64[1] {1}> ()
  to_mask = Constant <value = int64[1] {4}> ()
  three_masks = Slice (all_masks, from_mask, to_mask, axis1)
  three_scores = Slice (all_scores, from_mask, to_mask, axis1)
  pred_masks = Unsqueeze (three_masks, first)
  iou_scores = Unsqueeze (three_scores, first)
}"""
).replace("labels_in = Where (ignored", "absent_label = Constant <value = float {-2}> ()\n  labels_in = Where (ignored")
"""Prompts as a second batch, whole numbers as labels, -10 for none, the three masks of an ambiguous prompt."""
