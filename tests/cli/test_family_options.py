"""Options that only some models have are refused before anything is read, downloaded or written."""

import pytest
import torch
from safetensors.torch import save_file

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
        (("--encoder", "hiera_b+", "--sparse", "--adapter", "absent.pth"), "absent.pth cannot be read"),
        (("--encoder", "hiera_t", "--weights", "demo"), "hiera_t"),
    ],
)
def test_what_a_model_has_not_is_refused_in_one_line(run, tmp_path, arguments, message):
    code, _, err = run("onnx", *arguments, "--out", tmp_path / "bundle")
    assert code == 2
    assert message in one_line_error(err)
    assert not list(tmp_path.iterdir())


def test_an_adapter_s_file_is_looked_at_first_and_joins_the_official_checkpoint(run, tmp_path):
    def refused(name, tensors):
        save_file({key: torch.zeros(2) for key in tensors}, tmp_path / name)
        arguments = ("--encoder", "hiera_b+", "--sparse", "--adapter", tmp_path / name, "--out", tmp_path / "bundle")
        code, _, err = run("onnx", *arguments)
        assert (code, (tmp_path / "bundle").exists()) == (2, False)
        return one_line_error(err)

    assert "odd.safetensors holds no bypass" in refused("odd.safetensors", ["neck.weight"])
    # the official file is wanted, and nobody published its sha256
    assert "sha256 of sam2.1_hiera_base_plus.pt" in refused("own.safetensors", ["norm.bias", "up_project.bias"])


def test_the_model_for_tests_is_not_listed_and_the_others_are(run):
    code, out, _ = run("list")
    assert code == 0
    assert "hiera_b+" in out
    assert "sam2_hiera_l" in out
    assert "hiera64" not in out
