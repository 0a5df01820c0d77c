import os

import pytest

from samexport.quiet import quiet_descriptors


def test_what_c_code_writes_is_lost_and_later_output_is_not(capfd):
    with quiet_descriptors():
        os.write(1, b"library")
        os.write(2, b"library")
    os.write(1, b"after")
    os.write(2, b"after")
    assert capfd.readouterr() == ("after", "after")


def test_output_comes_back_after_an_error(capfd):
    def fail():
        with quiet_descriptors():
            os.write(2, b"library")
            raise ValueError("reason")

    with pytest.raises(ValueError, match="reason"):
        fail()
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"
