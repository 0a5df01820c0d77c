"""``--help`` in groups, without rich, whose import takes longer than all the rest."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

EXPORT, CHECK, USE = "Make files", "Check and measure", "Use files"
TRAIN, LOOK = "Train", "Look around"


_EXAMPLES = {
    "": (
        "samexport onnx --encoder tinyvit --weights random",
        "samexport verify mobilesam-tinyvit-onnx-fp32-random",
        "samexport segment mobilesam-tinyvit-onnx-fp32-random photo.jpg --point 320,200 --out overlay.png",
    ),
    "export": ("samexport export tinyvit --format onnx,tflite,coreml --out bundles",),
    "onnx": (
        "samexport onnx --encoder tinyvit",
        "samexport onnx --encoder vit_b --checkpoint sam_vit_b_01ec64.pth --precision fp16 --out sam-b",
    ),
    "tflite": (
        "samexport tflite --encoder tinyvit",
        "samexport tflite --encoder tinyvit --target gpu --prompts 1,8 --points 4",
    ),
    "coreml": (
        "samexport coreml --encoder tinyvit --precision fp32",
        "samexport coreml --encoder tinyvit --input image --prompts 1,4,16 --deployment-target iOS18",
    ),
    "quantize": (
        "samexport quantize BUNDLE --recipe static_wi8_ai8 --calibration photos",
        "samexport quantize BUNDLE --recipe mixed --calibration photos --max-drop 0.005 --out small",
    ),
    "sensitivity": ("samexport sensitivity BUNDLE --calibration photos --out layers.png",),
    "compare-recipes": (
        "samexport compare-recipes BUNDLE --calibration photos --out quantization.md",
        "samexport compare-recipes BUNDLE --annotations instances_val2017.json --images val2017 --max-images 50",
    ),
    "compare-encoders": (
        "samexport compare-encoders edge_sam tinyvit efficientvit_l0 --out docs/results/encoders",
        "samexport compare-encoders --format onnx,tflite --threads 4",
    ),
    "android": ("samexport android mobilesam-tinyvit-tflite-fp32 --out android_demo_assets",),
    "deliver": (
        "samexport deliver --list",
        "samexport deliver mobilesam-tinyvit-onnx-fp32 --for anylabeling",
    ),
    "web": ("samexport web mobilesam-tinyvit-onnx-fp32-demo --out site",),
    "verify": (
        "samexport verify BUNDLE --report report.xml",
        "samexport verify BUNDLE --checkpoint mobile_sam.pt",
        "samexport verify TFLITE_BUNDLE --against ONNX_BUNDLE --gpu",
    ),
    "segment": (
        "samexport segment BUNDLE photo.jpg --point 320,200 --point 10,10,0 --out overlay.png",
        "samexport segment BUNDLE photo.jpg --box 100,50,500,350 --masks masks.json",
        "samexport segment BUNDLE photos/ --box 100,50,500,350 --json > answers.jsonl",
    ),
    "everything": ("samexport everything BUNDLE photo.jpg --out overlay.png --masks masks.json",),
    "track": (
        "samexport track BUNDLE clip.mp4 --point 420,300 --overlay out.mp4",
        "samexport track BUNDLE frames/ --object 1 --point 420,300 --object 2 --frame 40 --box 10,20,90,80 --out masks",
        "samexport track BUNDLE clip.mp4 --frame 30 --point 420,300 --direction both --json tracks.json",
    ),
    "eval": ("samexport eval BUNDLE --annotations instances_val2017.json --images val2017 --max-images 100",),
    "bench": ("samexport bench BUNDLE --out results", "samexport bench --compare old.json new.json"),
    "train-demo": (
        "samexport train-demo --budget 9m --out demo",
        "samexport train-demo --budget 2h --out demo --resume",
    ),
    "distill": ("samexport distill --teacher sam_vit_h_4b8939.pth --student tinyvit --images photos --out student",),
    "draw-scenes": ("samexport draw-scenes --count 20 --out scenes",),
    "inspect": ("samexport inspect my_finetuned.pth", "samexport inspect SlimSAM-77.pth --json"),
    "list": ("samexport list", "samexport list --json", "samexport list --recipes"),
    "doctor": ("samexport doctor", "samexport doctor --json"),
}

# what typer adds to the name of an argument, such as <list[str]>
_KIND = re.compile(r" <\S+>$")


def examples(command: str = "") -> str:
    """The end of a command's help; of the whole program without a name."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in _EXAMPLES[command])))


def _write_groups(formatter: Any, groups: dict[str, list[tuple[str, str]]]) -> None:
    for name, records in groups.items():
        if records:
            with formatter.section(name):
                formatter.write_dl(records)


class GroupedCommand(TyperCommand):
    """A command whose options appear under their ``rich_help_panel``."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section a group, in the order of the parameters."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                default = "Options"
                if parameter.param_type_name == "argument":
                    default, record = "Arguments", (_KIND.sub("", record[0]), record[1])
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        _write_groups(formatter, groups)


class GroupedCommands(TyperGroup):
    """The whole program: its commands appear under their ``rich_help_panel``."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section a group, in the order of the commands."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                groups.setdefault(panel, []).append((name, command.get_short_help_str(limit=100)))
        _write_groups(formatter, groups)
