"""A family that is as unlike SAM as the contracts allow: other names, no axis, stretched pictures, int64, memory."""

from collections.abc import Sequence

import numpy as np

from samexport.errors import PromptError
from samexport.exporter.deliver.card import About
from samexport.models.families.base import Family
from samexport.models.spec import GraphSpec, ModelSpec, Preprocess, TensorSpec
from samexport.runtimes.host.frames import FrameMap, to_frame
from samexport.runtimes.host.prompts import Prompt, check_inside
from samexport.runtimes.parity.golden import Made
from samexport.runtimes.session import Decoded, Encoded, Session, check_numbers

FRAME = Preprocess(48, resize="stretch", filter="bilinear_float", padding="black", stride=4)
SLOTS = 4
MAP = (1, 8, 12, 12)

PICTURE = TensorSpec("image", (1, 3, 48, 48), "RGB, stretched", 0, 255)
SEEN = TensorSpec("seen", MAP, "features of the picture")
MEMORY = TensorSpec("memory", MAP, "what earlier frames left; 0 for none")
RECALLED = TensorSpec("recalled", MAP, "features with what is remembered")
SPOTS = TensorSpec("spots", (SLOTS, 2), "x, y in pixels of the frame", 0, 47)
KINDS = TensorSpec("kinds", (SLOTS,), "1 inside, 0 outside, 2 and 3 corners, -1 none", -1, 3, dtype="int64")
SHAPES = TensorSpec("shapes", (1, 2, 12, 12), "logits", role="mask_logits")
MARKS = TensorSpec("marks", (1, 2), "how sure", role="mask_scores")
USED = TensorSpec("used", (1,), "how many slots are used", dtype="int64")
KEPT = TensorSpec("kept", MAP, "memory for the next frame")

GRAPHS = (
    GraphSpec("look", "a picture to features", (PICTURE,), (SEEN,)),
    GraphSpec("recall", "features and memory", (SEEN, MEMORY), (RECALLED,)),
    GraphSpec("point_out", "one prompt to masks", (RECALLED, SPOTS, KINDS), (SHAPES, MARKS, USED)),
    GraphSpec("remember", "what to remember", (SEEN, SHAPES), (KEPT,)),
)
CHAIN = tuple(graph.name for graph in GRAPHS)


class ToySession(Session):
    @property
    def first(self) -> str:
        return "look"

    def encode(self, picture) -> Encoded:
        place = FrameMap(picture.shape[:2], self.manifest.frame)
        found = self.graphs.run("look", {"image": to_frame(picture, place.frame)}, ("seen",))
        check_numbers("look", found["seen"])
        return Encoded(place, found)

    def pack(self, prompts: Sequence[Prompt], place):
        check_inside(prompts, place.image_hw)
        spots, kinds = np.zeros((len(prompts), SLOTS, 2), np.float32), np.full((len(prompts), SLOTS), -1, np.int64)
        for number, prompt in enumerate(prompts):
            corners = np.zeros((0, 2)) if prompt.box is None else prompt.box.reshape(2, 2)
            points = np.concatenate([prompt.points, corners])
            if len(points) > SLOTS:
                raise PromptError(f"prompt {number} has {len(points)} points; this model takes {SLOTS}")
            spots[number, : len(points)] = place.to_frame(points)
            kinds[number, : len(points)] = [*prompt.labels, *(2, 3)[: len(corners)]]
        return {"spots": spots, "kinds": kinds}

    def click(self, points):
        spots, kinds = np.zeros((len(points), SLOTS, 2), np.float32), np.full((len(points), SLOTS), -1, np.int64)
        spots[:, 0], kinds[:, 0] = points, 1
        return {"spots": spots, "kinds": kinds}

    def open_decoder(self, packed=None) -> None:
        for name in ("recall", "point_out"):
            self.graphs.open(name)

    def decode(self, encoded: Encoded, packed) -> Decoded:
        memory = encoded.tensors.get("memory", self.graphs.bundle.constants["no_memory"])
        recalled = self.graphs.run("recall", {"seen": encoded.tensors["seen"], "memory": memory})
        answers = [
            self.graphs.run("point_out", {**recalled, "spots": spots, "kinds": kinds})
            for spots, kinds in zip(packed["spots"], packed["kinds"], strict=True)
        ]
        logits, scores = (np.concatenate([answer[name] for answer in answers]) for name in ("shapes", "marks"))
        check_numbers("point_out", logits, scores)
        return Decoded(logits, scores)

    def choose(self, packed, decoded) -> list[int]:
        clear = (packed["kinds"] >= 0).sum(-1) > 1
        return [0 if sure else int(found.argmax()) for sure, found in zip(clear, decoded.scores, strict=True)]

    def step(self, picture, state, prompts=()):
        encoded = self.encode(picture)
        if state is not None:
            encoded.tensors["memory"] = state
        packed = self.pack(prompts, encoded.place) if prompts else self.click(np.zeros((1, 2)))
        found = self.decode(encoded, packed)
        kept = self.graphs.run("remember", {"seen": encoded.tensors["seen"], "shapes": found.logits[:1]})
        return found, kept["kept"]


def make_cases(reference):
    rng = reference.rng
    frames = [
        {
            "image": Made("picture", shift=2 * number),
            "spots": rng.uniform(0, 47, (SLOTS, 2)).astype(np.float32),
            "kinds": np.array([1, 0, -1, -1] if number == 0 else [1, 2, 3, -1], np.int64),
        }
        for number in range(3)
    ]
    frames[0]["memory"] = np.zeros(MAP, np.float32)
    noise = {"seen": Made("normal", seed=3, shape=MAP), "memory": Made("uniform", seed=4, shape=MAP, low=-1)}
    return [
        reference.case("video", CHAIN, *frames, also=("shapes", "marks", "used")),
        reference.case("noise", ("recall",), noise),
    ]


def about(manifest) -> About:
    return About(["A prompt has four slots."], ["The end."])


FAMILY = Family(
    name="toy",
    models=(
        ModelSpec(
            "toy.blob", "a family for tests", FRAME, GRAPHS, 0, "Apache-2.0", 8, "toy", mask_outputs=(0, 1), hidden=True
        ),
    ),
    graphs=lambda features: CHAIN,
    network="tests.families.toy_network:empty",
    forms="tests.families.toy_network:FORMS",
    plain="tests.families.toy_network:FORMS",
    session="tests.families.toy:ToySession",
    cases="tests.families.toy:make_cases",
    card="tests.families.toy:about",
    state={"kept": "memory"},
    constants="tests.families.toy_network:constants",
)
