"""Configuration files and small programs that go with delivered files; ``$NAME`` and its like are filled in."""

ANYLABELING = """type: segment_anything
name: $NAME
display_name: $SUMMARY
encoder_model_path: $NAME.encoder.onnx
decoder_model_path: $NAME.decoder.onnx
input_size: 1024
max_width: 1024
max_height: 682
"""

OSAM = '''"""Adds this folder's model to osam, whose list of models is in its code: import this file first."""

import shutil
from pathlib import Path

from osam import apis
from osam._models.sam._models import Sam
from osam.types import Blob


class Delivered(Sam):
    name = "$NAME:latest"
    _blobs = {
        "encoder": Blob(url="encoder.onnx", hash="sha256:$SHA256_0"),
        "decoder": Blob(url="decoder.onnx", hash="sha256:$SHA256_1"),
    }


for _blob in Delivered._blobs.values():
    _path = Path(_blob.path)
    if not _path.exists():
        _path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(__file__).with_name(_blob.url), _path)
apis.registered_model_types.append(Delivered)
'''

CVAT_FUNCTION = """metadata:
  name: pth-facebookresearch-sam-vit-h
  namespace: cvat
  annotations:
    name: $SUMMARY
    version: 2
    type: interactor
    spec:
    min_pos_points: 1
    min_neg_points: 0
    help_message: At least one point inside the object; points outside it are optional.

spec:
  description: $SUMMARY
  runtime: 'python:3.11'
  handler: main:handler
  eventTimeout: 30s
  build:
    image: cvat.samexport.$NAME
    baseImage: python:3.11-slim
    directives:
      preCopy:
        - kind: WORKDIR
          value: /opt/nuclio
        - kind: RUN
          value: pip install --no-cache-dir onnxruntime pillow numpy
  triggers:
    myHttpTrigger:
      maxWorkers: 1
      kind: 'http'
      workerAvailabilityTimeoutMilliseconds: 10000
      attributes:
        maxRequestBodySize: 33554432
  platform:
    attributes:
      restartPolicy:
        name: always
        maximumRetryCount: 3
      mountMode: volume
"""

CVAT_FUNCTION_2 = (
    CVAT_FUNCTION.replace("pth-facebookresearch-sam-vit-h", "pth-facebookresearch-sam2-hiera-large")
    .replace("min_pos_points: 1", "min_pos_points: 0")
    .replace("min_neg_points: 0\n", "min_neg_points: 0\n    startswith_box_optional: true\n")
    .replace("At least one point inside the object; points outside it are optional.", "A box, points inside, or both.")
)

_CVAT_MAIN = '''"""CVAT's serverless function: a picture in, its embedding out; the decoder runs in the browser."""

import base64
import io
import json

import numpy as np
import onnxruntime
from PIL import Image

SIZE = $S
<consts>

def init_context(context):
    context.user_data.encoder = onnxruntime.InferenceSession("encoder.onnx", providers=["CPUExecutionProvider"])


def framed(picture):
<framed>

def handler(context, event):
    picture = Image.open(io.BytesIO(base64.b64decode(event.body["image"]))).convert("RGB")
    found = context.user_data.encoder.run(list(ANSWERS.values()), {"image": framed(picture)})
    blobs = (base64.b64encode(value.astype(np.float32).tobytes()).decode() for value in found)
    body = json.dumps(dict(zip(ANSWERS, blobs)))
    return context.Response(body=body, headers={}, content_type="application/json", status_code=200)
'''

CVAT_MAIN = _CVAT_MAIN.replace(
    "<consts>",
    """MEAN = np.array([$MEAN], np.float32)
ANSWERS = {"blob": "image_embeddings"}
""",
).replace(
    "<framed>",
    """    scale = SIZE / max(picture.size)
    width, height = (max(1, int(side * scale + 0.5)) for side in picture.size)
    pixels = np.tile(MEAN, (SIZE, SIZE, 1))
    pixels[:height, :width] = picture.resize((width, height), Image.Resampling.BILINEAR)
    return pixels.transpose(2, 0, 1)[None]
""",
)

CVAT_MAIN_2 = _CVAT_MAIN.replace(
    "<consts>",
    """ANSWERS = {name: name for name in ("image_embed", "high_res_feats_0", "high_res_feats_1")}
""",
).replace(
    "<framed>",
    """    channels = (channel.convert("F") for channel in picture.split())
    return np.stack([np.asarray(c.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for c in channels])[None]
""",
)

DARKTABLE = """{
 "id": "mask-samexport-$NAME",
 "name": $SUMMARY,
 "description": $SUMMARY,
 "task": "mask",
 "arch": "sam2",
 "backend": "onnx",
 "version": "1.0"
}
"""

TRANSFORMERS_CONFIG = """{
 "model_type": "sam",
 "architectures": ["SamModel"],
 "transformers.js_config": {"dtype": {"vision_encoder": "fp32", "prompt_encoder_mask_decoder": "fp32"}}
}
"""

TRANSFORMERS_PREPROCESSOR = """{
 "processor_class": "SamProcessor",
 "image_processor_type": "SamImageProcessor",
 "do_convert_rgb": true,
 "do_resize": true,
 "size": {"longest_edge": $S},
 "resample": 2,
 "do_rescale": true,
 "rescale_factor": 0.00392156862745098,
 "do_normalize": true,
 "image_mean": [0.485, 0.456, 0.406],
 "image_std": [0.229, 0.224, 0.225],
 "do_pad": true,
 "pad_size": {"height": $S, "width": $S}
}
"""

TRANSFORMERS_CONFIG_2 = TRANSFORMERS_CONFIG.replace(
    '"sam",', '"sam2",\n "vision_config": {"num_feature_levels": 3},'
).replace("SamModel", "Sam2Model")

TRANSFORMERS_PREPROCESSOR_2 = (
    TRANSFORMERS_PREPROCESSOR.replace("SamProcessor", "Sam2Processor")
    .replace("SamImageProcessor", "Sam2ImageProcessor")
    .replace('{"longest_edge": $S}', '{"height": $S, "width": $S}')
    .replace('"do_pad": true,\n "pad_size": {"height": $S, "width": $S}', '"do_pad": false')
)
