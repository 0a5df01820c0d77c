import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco

from samexport.errors import AnnotationError, ImageError
from samexport.runtimes.accuracy.annotations import read_annotations
from tests import annotated
from tests.annotated import CROWD, LARGE, MEDIUM, OTHER_SMALL, SMALL


def test_coco_polygons_run_lengths_and_crowds_are_read(tmp_path):
    first, second = read_annotations(*annotated.write(tmp_path, annotated.coco_data()))
    assert (first.id, first.image_hw, second.id) == (3, annotated.FIRST_HW, 8)
    assert first.read().shape == (*annotated.FIRST_HW, 3)
    for image, boxes in ((first, (SMALL, MEDIUM, LARGE)), (second, (OTHER_SMALL, CROWD))):
        for instance, box in zip(image.instances, boxes, strict=True):
            assert np.array_equal(coco.decode(instance.segmentation), annotated.mask_of(box, image.image_hw))
            assert (instance.box, instance.pixels) == (box, (box[2] - box[0]) * (box[3] - box[1]))
            assert instance.area == instance.pixels
    assert [i.crowd for i in second.instances] == [False, True]


def test_lvis_has_no_crowds_and_names_the_file_in_its_url(tmp_path):
    arguments = annotated.write(tmp_path / "flat", annotated.lvis_data())
    assert [len(image.instances) for image in read_annotations(*arguments)] == [3, 1]
    annotations, _ = annotated.write(tmp_path / "split", annotated.lvis_data(), "pictures/val2017")
    images = read_annotations(annotations, tmp_path / "split" / "pictures")
    assert [image.path.relative_to(tmp_path / "split").parts[:2] for image in images] == [("pictures", "val2017")] * 2


def test_a_box_is_the_annotated_one_inside_the_picture_or_else_the_masks_own(tmp_path):
    data = annotated.coco_data()
    first, second, third, *_ = data["annotations"]
    first["bbox"], second["bbox"], second["area"] = [-4.5, 9.25, 40, 400], [50, 60, 0, 8], 77.5
    del third["bbox"], third["area"]
    image, _ = read_annotations(*annotated.write(tmp_path, data))
    assert [i.box for i in image.instances] == [(0, 9.25, 35.5, 150), MEDIUM, LARGE]
    assert [i.area for i in image.instances] == [400, 77.5, 10000]


def test_images_are_the_first_by_id_or_a_seeded_choice(tmp_path):
    data = annotated.coco_data()
    data["images"] += [data["images"][1] | {"id": 100 + i} for i in range(20)]
    data["annotations"] += [annotated.annotation(100 + i, 100 + i, SMALL) for i in range(20)]
    arguments = annotated.write(tmp_path, data)

    def ids(**options):
        return [image.id for image in read_annotations(*arguments, **options)]

    assert ids(max_images=3) == [3, 8, 100]
    assert len(ids(max_images=99, seed=1)) == 22
    chosen = ids(max_images=6, seed=1)
    assert chosen == sorted(set(chosen)) == ids(max_images=6, seed=1)
    assert chosen != ids(max_images=6, seed=2)


def damage(path, value):
    """coco_data with one value replaced; ... removes it."""
    data = copy.deepcopy(annotated.coco_data())
    *above, last = path
    target = data
    for key in above:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return data


GOOD = annotated.rle_of(SMALL, annotated.FIRST_HW)["counts"].decode()
ANNOTATION, IMAGE = ("annotations", 0), ("images", 1)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("images",), ..., "no lists of images"),
        (("annotations",), {}, "no lists of images"),
        (("annotations",), [], "no annotated object"),
        (("images",), [], "no annotated object"),
        (("images", 0, "id"), 3, "two images with the id 3"),
        ((*IMAGE, "id"), "3", "whole number as its id"),
        ((*IMAGE, "height"), ..., "whole number as its height"),
        ((*IMAGE, "width"), 0, "0x150 pixels"),
        ((*IMAGE, "width"), 10**9, "pixels"),
        ((*IMAGE, "file_name"), "../first.png", "no file_name inside"),
        ((*IMAGE, "file_name"), "/first.png", "no file_name inside"),
        ((*IMAGE, "file_name"), ..., "no file_name"),
        ((*IMAGE, "width"), 199, r"annotation 5 of image 3 is damaged \(its mask is \[150, 200\]"),
        ((*ANNOTATION, "image_id"), ..., "whole number as its image_id"),
        ((*ANNOTATION, "segmentation"), ..., r"annotation 0 of image 3 is damaged \(no 'segmentation'"),
        ((*ANNOTATION, "segmentation"), [], "no polygon"),
        ((*ANNOTATION, "segmentation"), [[1, 2, 3, 4]], "three points"),
        ((*ANNOTATION, "segmentation"), [[1, 2, 3, 4, 5, 6, 7]], "three points"),
        ((*ANNOTATION, "segmentation"), [[1, 2, 3, 4, 5, float("nan")]], "far outside"),
        ((*ANNOTATION, "segmentation"), [[1, 2, 3, 4, 5, 1e9]], "far outside"),
        ((*ANNOTATION, "segmentation"), [["a", 2, 3, 4, 5, 6]], "damaged"),
        ((*ANNOTATION, "segmentation"), 7, "damaged"),
        ((*ANNOTATION, "segmentation"), {"size": [150, 200], "counts": [1, 2]}, "do not add up"),
        ((*ANNOTATION, "segmentation"), {"size": [150, 200], "counts": [-1, 30001]}, "do not add up"),
        ((*ANNOTATION, "segmentation"), {"size": [150, 200], "counts": GOOD[:5]}, "cut off|Invalid RLE"),
        ((*ANNOTATION, "segmentation"), {"size": [150, 200], "counts": ""}, "cut off|Invalid RLE"),
        ((*ANNOTATION, "segmentation"), {"size": [150, 200], "counts": "zzz"}, "cut off|Invalid RLE"),
        ((*ANNOTATION, "segmentation"), {"size": [150, 200], "counts": 5}, "damaged"),
        ((*ANNOTATION, "segmentation"), {"size": [200, 150], "counts": GOOD}, r"its mask is \[200, 150\]"),
        ((*ANNOTATION, "bbox"), [1, 2, 3], "bbox"),
        ((*ANNOTATION, "bbox"), [1, 2, 3, float("inf")], "bbox"),
        ((*ANNOTATION, "area"), -1, "area"),
        ((*ANNOTATION, "area"), "wide", "damaged"),
    ],
)
def test_damaged_annotations_are_refused_in_one_line(tmp_path, path, value, message):
    arguments = annotated.write(tmp_path, damage(path, value))
    with pytest.raises(AnnotationError, match=message) as caught:
        read_annotations(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\x00", '{"images": 3, "annotations": 4}'])
def test_files_that_are_no_annotations_are_refused(tmp_path, text):
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=r"instances\.json"):
        read_annotations(path, tmp_path)
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_annotations(tmp_path / "absent.json", tmp_path)


def test_a_missing_picture_is_found_before_any_is_read_and_a_wrong_size_when_it_is(tmp_path):
    annotations, pictures = annotated.write(tmp_path, annotated.coco_data())
    (pictures / "second.png").rename(pictures / "first.png")
    with pytest.raises(ImageError, match=r"second\.png is missing"):
        read_annotations(annotations, pictures)
    (image,) = read_annotations(annotations, pictures, max_images=1)
    with pytest.raises(ImageError, match="110x120, its annotations are for 200x150"):
        image.read()


def test_only_chosen_pictures_need_to_be_whole(tmp_path):
    data = annotated.coco_data()
    data["annotations"][3]["segmentation"] = "damaged"
    annotations, pictures = annotated.write(tmp_path, data)
    assert len(read_annotations(annotations, pictures, max_images=1)) == 1
    assert json.loads(annotations.read_text())["images"][2]["file_name"] == "absent.png"
