import contextlib
import copy
import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from samexport.errors import AnnotationError, ImageError, SamExportError
from samexport.runtimes.accuracy.annotations import AnnotatedImage, Annotations, read_annotations
from samexport.runtimes.accuracy.evaluate import average_recall
from tests import annotated
from tests.annotated import CROWD, LARGE, MEDIUM, OTHER_SMALL, SMALL


def test_coco_polygons_run_lengths_and_crowds_are_read(tmp_path):
    first, second = read_annotations(*annotated.write(tmp_path, annotated.coco_data())).images
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
    assert [len(image.instances) for image in read_annotations(*arguments).images] == [3, 1]
    annotations, _ = annotated.write(tmp_path / "split", annotated.lvis_data(), "pictures/val2017")
    images = read_annotations(annotations, tmp_path / "split" / "pictures").images
    assert [image.path.relative_to(tmp_path / "split").parts[:2] for image in images] == [("pictures", "val2017")] * 2


def test_a_box_is_the_annotated_one_inside_the_picture_or_else_the_masks_own(tmp_path):
    data = annotated.coco_data()
    first, second, third, *_ = data["annotations"]
    first["bbox"], second["bbox"], second["area"] = [-4.5, 9.25, 40, 400], [50, 60, 0, 8], 77.5
    del third["bbox"], third["area"]
    image, _ = read_annotations(*annotated.write(tmp_path, data)).images
    assert [i.box for i in image.instances] == [(0, 9.25, 35.5, 150), MEDIUM, LARGE]
    assert [i.area for i in image.instances] == [400, 77.5, 10000]


def test_images_are_the_first_by_id_or_a_seeded_choice(tmp_path):
    data = annotated.coco_data()
    data["images"] += [data["images"][1] | {"id": 100 + i} for i in range(20)]
    data["annotations"] += [annotated.annotation(100 + i, 100 + i, SMALL) for i in range(20)]
    arguments = annotated.write(tmp_path, data)

    def ids(**options):
        return [image.id for image in read_annotations(*arguments, **options).images]

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
        ((*IMAGE, "id"), True, "whole number as its id"),
        ((*IMAGE, "file_name"), 7, "no file_name inside"),
        ((*IMAGE, "file_name"), "first.png/", "no file_name inside"),
        ((*IMAGE, "file_name"), "first.png\\", "no file_name inside"),
        ((*IMAGE, "file_name"), "..\\first.png", "no file_name inside"),
        (("annotations", 0), 7, "no lists of images"),
        (("images", 0), [], "no lists of images"),
        ((*IMAGE, "height"), ..., "whole number as its height"),
        ((*IMAGE, "width"), 0, "0x150 pixels"),
        ((*IMAGE, "width"), 10**9, "pixels"),
        ((*IMAGE, "file_name"), "../first.png", "no file_name inside"),
        ((*IMAGE, "file_name"), "/first.png", "no file_name inside"),
        ((*IMAGE, "file_name"), ..., "no file_name"),
        ((*IMAGE, "width"), 199, r"annotation 5 of image 3 is damaged \(its mask is \[150, 200\]"),
        ((*ANNOTATION, "image_id"), ..., "whole number as its image_id"),
        ((*ANNOTATION, "segmentation"), ..., r"annotation 0 of image 3 is damaged \(no 'segmentation'"),
        ((*ANNOTATION, "segmentation"), [[1, 2, 3, 4]], "three points"),
        ((*ANNOTATION, "segmentation"), [[1, 2, 3, 4, 5, 6, 7]], "three points"),
        ((*ANNOTATION, "segmentation"), [[1, 2, 3, 4, 5, float("nan")]], "not JSON"),
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
        ((*ANNOTATION, "bbox"), [1, 2, 3, float("inf")], "not JSON"),
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
    (image,) = read_annotations(annotations, pictures, max_images=1).images
    with pytest.raises(ImageError, match="110x120, its annotations are for 200x150"):
        image.read()


def test_only_chosen_pictures_need_to_be_whole(tmp_path):
    data = annotated.coco_data()
    data["annotations"][3]["segmentation"] = "damaged"
    annotations, pictures = annotated.write(tmp_path, data)
    assert len(read_annotations(annotations, pictures, max_images=1).images) == 1
    assert json.loads(annotations.read_text())["images"][2]["file_name"] == "absent.png"


def test_crowds_and_empty_segmentations_are_counted_and_left_out(tmp_path):
    data = annotated.coco_data()
    first, second, *_ = data["annotations"]
    first["segmentation"] = []
    second["segmentation"] = [[], [40, 5, 90, 5, 90, 65, 40, 65], []]
    found = read_annotations(*annotated.write(tmp_path, data))
    assert (found.crowds, found.empty, found.bare) == (2, 1, 1)
    assert [instance.id for instance in found.images[0].instances] == [5, 6]
    assert np.array_equal(
        coco.decode(found.images[0].instances[0].segmentation), annotated.mask_of(MEDIUM, annotated.FIRST_HW)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iscrowd": 1}, "all 6 annotations are crowds .* set iscrowd to 0"),
        ({"segmentation": [[]], "iscrowd": 0}, "0 annotations are crowds, 6 have an empty segmentation"),
    ],
)
def test_a_file_of_nothing_but_crowds_or_empty_segmentations_says_so(tmp_path, changes, message):
    data = annotated.coco_data()
    data["annotations"] = [a | changes for a in data["annotations"]]
    with pytest.raises(AnnotationError, match=message):
        read_annotations(*annotated.write(tmp_path, data))


def test_backslashes_in_file_names_are_slashes_unless_there_is_such_a_file(tmp_path):
    data = annotated.coco_data()
    data["images"][1]["file_name"] = r"sub\first.png"
    annotations, pictures = annotated.write(tmp_path, data)
    (pictures / "sub").mkdir()
    (pictures / "first.png").rename(pictures / "sub" / "first.png")
    assert read_annotations(annotations, pictures, max_images=1).images[0].path == pictures / "sub" / "first.png"
    shutil.copy(pictures / "sub" / "first.png", pictures / r"sub\first.png")
    assert read_annotations(annotations, pictures, max_images=1).images[0].path.name == r"sub\first.png"


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "b\0.png", "x/" * 3000 + "y.png"])
def test_names_that_no_file_can_have_are_refused_in_one_line(tmp_path, name):
    arguments = annotated.write(tmp_path, damage((*IMAGE, "file_name"), name))
    with pytest.raises((AnnotationError, ImageError), match=r"image 3|is missing") as caught:
        read_annotations(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_byte_order_mark_is_no_damage(tmp_path):
    annotations, pictures = annotated.write(tmp_path, annotated.coco_data())
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes())
    assert len(read_annotations(annotations, pictures).images) == 2


def turned(path, orientation, size=None):
    """Save the picture again, as a camera that was held otherwise does."""
    picture, exif = Image.open(path), Image.Exif()
    exif[0x0112] = orientation
    picture = picture.resize(size) if size else picture
    picture.save(path.with_suffix(".jpg"), exif=exif)
    path.with_suffix(".jpg").rename(path)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_annotations_of_the_stored_picture_are_told_from_those_of_another_one(tmp_path, orientation):
    annotations, pictures = annotated.write(tmp_path, annotated.coco_data())
    turned(pictures / "first.png", orientation)
    image = read_annotations(annotations, pictures).images[0]
    with pytest.raises(ImageError, match=r"for the stored picture.* EXIF orientation.* remove the orientation"):
        image.read()
    turned(pictures / "first.png", orientation, (60, 60))
    with pytest.raises(ImageError, match="give the folder of pictures that were annotated"):
        image.read()


@pytest.mark.parametrize(
    ("orientation", "hw", "ambiguous"),
    [(1, (40, 40), False), (6, (40, 40), True), (6, (50, 40), False), (3, (40, 50), True), (2, (40, 50), True)],
)
def test_turned_pictures_are_ambiguous_where_the_size_does_not_tell(tmp_path, orientation, hw, ambiguous):
    path = tmp_path / "p.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = hw if orientation == 6 else hw[::-1]
    Image.new("RGB", stored).save(path, exif=exif)
    image = AnnotatedImage(1, path, hw, ())
    assert image.read().shape[:2] == hw
    assert image.ambiguous is ambiguous


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)


def places(value, path=()):
    """The path of every value inside a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


PLACES = [path for path in places(annotated.coco_data()) if path]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return annotated.write(tmp_path_factory.mktemp("property"), annotated.coco_data())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PLACES), value=VALUES)
def test_any_value_anywhere_is_read_or_refused_with_an_error_of_ours(written, path, value):
    annotations, pictures = written
    annotations.write_text(json.dumps(damage(path, value)))
    found = Annotations(())
    with contextlib.suppress(SamExportError):
        found = read_annotations(annotations, pictures)
    for image in found.images:
        for instance in image.instances:
            mask = coco.decode(instance.segmentation)
            assert mask.shape == image.image_hw
            assert mask.sum() == instance.pixels
        average_recall([image], {})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 3000), length=st.integers(0, 40), put=st.binary(max_size=20))
def test_any_bytes_anywhere_are_read_or_refused_with_an_error_of_ours(written, start, length, put):
    annotations, pictures = written
    text = json.dumps(annotated.coco_data()).encode()
    annotations.write_bytes(text[:start] + put + text[start + length :])
    with contextlib.suppress(SamExportError):
        read_annotations(annotations, pictures)
