"""Options that only some models have are refused before anything is read, downloaded or written."""

import pytest

from tests.command_line import one_line_error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--encoder", "tinyvit", "--video"), "mobilesam.tinyvit has no feature 'video'"),
        (("--encoder", "hiera_t", "--split-decoder"), "sam2.hiera_t has no feature 'split-decoder'"),
        (("--encoder", "hiera_t", "--small"), "sam2.hiera_t has no feature 'small'"),
        (("--encoder", "vit_b", "--image-size", 512), "sam.vit_b takes pictures of 1024 pixels"),
        (("--encoder", "hiera_t", "--image-size", 500), "--image-size is a multiple of 32 from 64 to 2048, not 500"),
        (("--encoder", "hiera_t", "--image-size", 32), "--image-size"),
        (("--encoder", "hiera_t"), "--checkpoint"),
        (("--encoder", "tinyvit", "--sparse"), "mobilesam.tinyvit has no feature 'sparse'"),
        (("--encoder", "hiera_t", "--video", "--adapter", "identity"), "--adapter is of --sparse; give it"),
        (
            ("--encoder", "hiera_b+", "--sparse", "--weights", "random", "--adapter", "bypass.pth"),
            "--weights random draws the bypass, too; leave out --adapter",
        ),
        (("--encoder", "hiera_b+", "--sparse", "--adapter", "bypass.pth"), "sha256 of sam2.1_hiera_base_plus.pt"),
        (("--encoder", "hiera_t", "--weights", "demo"), "hiera_t"),
    ],
)
def test_what_a_model_has_not_is_refused_in_one_line(run, tmp_path, arguments, message):
    code, _, err = run("onnx", *arguments, "--out", tmp_path / "bundle")
    assert code == 2
    assert message in one_line_error(err)
    assert not list(tmp_path.iterdir())


def test_the_model_for_tests_is_not_listed_and_the_others_are(run):
    code, out, _ = run("list")
    assert code == 0
    assert "hiera_b+" in out
    assert "sam2_hiera_l" in out
    assert "hiera64" not in out
