"""Encoders side by side: a row for every model, format and runtime, kept in a file that later runs add to."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import log
from pathlib import Path

from samexport.benchmarks.contenders.baselines import TORCHSCRIPT, gmac
from samexport.benchmarks.results.plots import STYLE, new_figure, saved
from samexport.benchmarks.results.rows import Amount, Count, Results, Status, from_plain
from samexport.errors import ConfigError, FileError
from samexport.files import read_json, reason, to_json
from samexport.installation import need_matplotlib
from samexport.models.catalog import find_family, find_model
from samexport.runtimes.bundle import Bundle

ANSWER = "next click"
"""The task that is timed beside the encoder: one click on a picture that is encoded already, up to its mask."""
RIVALS = ("plain", TORCHSCRIPT)
"""What an ONNX encoder is called in turns with: the untouched architecture, by torch's newer exporter, which samexport
uses, and by the older one, which official exports use."""
JSON, TABLE, PLOT = "encoders.json", "encoders.md", "encoders.png"
_VERSION = 1
_LETTER = 0.045
"""The width of a letter in the plot, as a difference of logarithms of sizes where these reach from 10 to 1000 MB."""
_SIZES = """Of each format and recipe (`samexport list --recipes`): the encoder's file and all files, MB.
"""
_ABOUT = """Random weights of the real architecture: times and sizes do not depend on them; accuracy does, and is not
here. `encode` is the encoder's file alone, `next click` everything from a click on a picture that is encoded to its
mask on a photograph of 12 megapixels; medians in milliseconds. `of plain` is the median of the encoder's time by that
of the untouched architecture, called in turns: by torch's newer exporter, then by its older one, which made most
official files. `max error` is the worst of all checks against PyTorch.
Another run adds its rows and replaces those of the same model, files and runtime.
"""


@dataclass(frozen=True)
class EncoderRow:
    """One model in one format on one runtime.

    Attributes:
        model: name in the catalogue.
        parameters: of the whole network.
        side: of the square that the encoder sees, in pixels.
        gmac: multiply-accumulates (1e9) of the encoder.
        file_format, recipe, runtime, threads: what was run; no runtime and 0 threads where nothing here can be timed.
        encoder_mb, files_mb: size of the encoder's file and of all files, 1e6 bytes.
        max_error: the worst of all checks against PyTorch, of the range of the output.
        linter: operations that would leave a delegate, for people; empty where the format has no linter.
        encode_ms, answer_ms: medians of the encoder's file and of :data:`ANSWER`; None where they were not measured.
        of_plain, of_torchscript: the encoder's time by that of each of :data:`RIVALS`; None where there is none.
        created, cpu: when and where.
    """

    model: str
    parameters: Count
    side: Count
    gmac: Amount | None
    file_format: str
    recipe: str
    runtime: str
    threads: Count
    encoder_mb: Amount
    files_mb: Amount
    max_error: Amount
    linter: str = ""
    encode_ms: Amount | None = None
    answer_ms: Amount | None = None
    of_plain: Amount | None = None
    of_torchscript: Amount | None = None
    created: str = ""
    cpu: str = ""

    @property
    def files(self) -> tuple[str, str, str]:
        """Model, format and recipe: whose sizes they are, whatever runs them."""
        return (self.model, self.file_format, self.recipe)

    @property
    def key(self) -> tuple[object, ...]:
        """What a later row of the same replaces."""
        return (*self.files, self.runtime, self.threads)


@dataclass(frozen=True)
class _Stored:
    schema_version: int
    rows: tuple[EncoderRow, ...] = field(default_factory=tuple)


def rows_of(bundle: Bundle, results: Results) -> list[EncoderRow]:
    """The rows of a bundle that was just exported and measured: its first graph and :data:`ANSWER`."""
    row = untimed(bundle)
    first = find_family(find_model(row.model).family).first
    done = [row for row in results.rows if row.status is Status.DONE and row.job.form == "export"]
    made = []
    # PyTorch, which runs where none is named, reads no file
    for encoded in (row for row in done if row.job.graph == first and row.job.file):
        ran = (encoded.job.runtime, encoded.job.threads)
        tasks = [r for r in done if r.job.graph == ANSWER and (r.job.runtime, r.job.threads) == ran]
        ratios = {p.second.options: p.ratio for p in results.pairs if p.first == encoded.job}
        made.append(
            replace(
                row, runtime=ran[0], threads=ran[1], encode_ms=encoded.measured.p50_ms,
                answer_ms=tasks[0].measured.p50_ms if tasks else None, of_plain=ratios.get(""),
                of_torchscript=ratios.get(f"converter={TORCHSCRIPT}"), created=results.created,
                cpu=results.environment.cpu,
            )
        )  # fmt: skip
    return made


def untimed(bundle: Bundle) -> EncoderRow:
    """The row of a bundle that no runtime here can be timed with: what its export and its checks have found."""
    spec = find_model(bundle.manifest.model)
    first = find_family(spec.family).first
    artifact, parity = bundle.artifact(first), bundle.manifest.parity
    checked = [row.max_error / row.value_range for row in parity if row.max_error and row.value_range]
    linted = [row.output for row in parity if row.check.kind == "lint" and first in row.check.graphs]
    return EncoderRow(
        spec.name, spec.parameters, spec.frame.size, gmac(spec.name, first, "export", 0, 0), artifact.file_format,
        artifact.recipe, "", 0, artifact.size / 1e6, sum(a.size for a in bundle.manifest.artifacts) / 1e6,
        max(checked, default=0.0), "; ".join(linted),
    )  # fmt: skip


def merged(known: Sequence[EncoderRow], new: Sequence[EncoderRow]) -> list[EncoderRow]:
    """Both, where a new row takes the place of the same one before, and a timed one that of one that was not.

    Small encoders come first.
    """
    rows = {row.key: row for row in (*known, *new)}
    timed = {row.files for row in rows.values() if row.runtime}
    shown = [row for row in rows.values() if row.runtime or row.files not in timed]
    return sorted(shown, key=lambda row: (row.gmac or 0, *map(str, row.key)))


def read(path: Path) -> list[EncoderRow]:
    """Rows of an earlier run; ConfigError if the file is none that :func:`text_of` made."""
    try:
        stored = from_plain(read_json(path), _Stored)
        if stored.schema_version != _VERSION:
            raise ValueError(f"version {stored.schema_version}")
    except (FileError, ValueError) as error:
        raise ConfigError(f"{path} is not a file of samexport compare-encoders ({reason(error)})") from error
    return list(stored.rows)


def text_of(rows: Sequence[EncoderRow]) -> str:
    """What :func:`read` reads."""
    return to_json(asdict(_Stored(_VERSION, tuple(rows))))


def page(rows: Sequence[EncoderRow], out: str) -> str:
    """A Markdown page: what the models are and weigh, what was measured, and the commands that wrote it to ``out``."""
    kinds = dict.fromkeys(sorted((row.file_format, row.recipe) for row in rows))
    models = {row.model: row for row in rows}
    sizes = {row.files: row for row in rows}
    about = ["`--encoder`", "parameters", "encoder GMAC", "frame", *map(" ".join, kinds), "weights"]
    first = [
        [*_about(row), *[_sizes(sizes.get((name, *kind))) for kind in kinds], _weights(name)]
        for name, row in models.items()
    ]
    measured = [
        "`--encoder`", "files", "runtime", "encode", "next click", "of plain", "max error / range", "linter",
    ]  # fmt: skip
    machines = sorted({f"- {row.cpu}, {row.created[:10]}" for row in rows if row.runtime})
    return "\n".join(
        [
            "# Encoders", "", *_table(about, first), "", _SIZES, "## Times and checks", "",
            *_table(measured, [_measured(row) for row in rows]), "", _ABOUT, *machines, "",
            "```", *_commands(rows, out), "```", "",
        ]
    )  # fmt: skip


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "/") for cell in line] for line in (columns, *lines)]
    head, *body = [f"| {' | '.join(line)} |" for line in cells]
    return [head, "|" + "---|" * len(columns), *body]


def _about(row: EncoderRow) -> list[str]:
    parameters = f"{_short(row.parameters / 1e6)} M"
    return [f"`{find_model(row.model).encoder}`", parameters, _short(row.gmac), str(row.side)]


def _sizes(row: EncoderRow | None) -> str:
    return f"{row.encoder_mb:.1f}, {row.files_mb:.1f}" if row else ""


def _weights(model: str) -> str:
    spec = find_model(model)
    return f"[{spec.licence}]({spec.source.url})" if spec.source and spec.source.url else spec.licence


def _measured(row: EncoderRow) -> list[str]:
    return [
        f"`{find_model(row.model).encoder}`", f"{row.file_format} {row.recipe}", _ran(row),
        _number(row.encode_ms, ".0f"), _number(row.answer_ms, ".0f"),
        ", ".join(_number(r, ".2f") for r in (row.of_plain, row.of_torchscript) if r), f"{row.max_error:.1e}",
        row.linter,
    ]  # fmt: skip


def _commands(rows: Sequence[EncoderRow], out: str) -> list[str]:
    """What makes the rows: a line for each format, recipe and set of runtimes."""
    ran: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        ran.setdefault(row.files, []).extend([row.runtime] * bool(row.runtime))
    lines: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (model, file_format, recipe), runtimes in ran.items():
        lines.setdefault((file_format, recipe, tuple(runtimes)), []).append(find_model(model).encoder)
    return [
        shlex.join(
            [
                "samexport", "compare-encoders", *names, "--format", file_format, "--recipe", recipe,
                *(word for name in runtimes for word in ("--runtime", name)), *["--seconds", "0"] * (not runtimes),
                "--out", out,
            ]
        )
        for (file_format, recipe, runtimes), names in sorted(lines.items())
    ]  # fmt: skip


def _ran(row: EncoderRow) -> str:
    return f"{row.runtime}, {row.threads} thread{'s' * (row.threads > 1)}" if row.runtime else "not timed"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _short(value: float | None) -> str:
    """With one digit behind the point, and of what is small two that mean something."""
    return _number(value, ".1f" if value is None or value >= 1 else ".2g")


def plot(rows: Sequence[EncoderRow]) -> bytes:
    """A PNG of the encoders' times against the sizes of their files, a colour for each format and runtime.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    need_matplotlib()
    from matplotlib import rc_context
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    kinds = sorted({(row.file_format, row.recipe, row.runtime) for row in rows if row.encode_ms is not None})
    with rc_context(STYLE):
        figure, (axes,) = new_figure(7.5, 4.5, [1])
        for kind in kinds:
            mine = [r for r in rows if (r.file_format, r.recipe, r.runtime) == kind and r.encode_ms is not None]
            axes.scatter([r.encoder_mb for r in mine], [r.encode_ms or 0 for r in mine], s=28, label=" ".join(kind))
        for name, place, left in _labels(rows):
            offset, side = ((-5, 3), "right") if left else ((5, 3), "left")
            axes.annotate(name, place, xytext=offset, ha=side, textcoords="offset points", fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel="encoder's file, MB", ylabel="one picture, ms")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.margins(0.15)
        if kinds:
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
        return saved(figure, "png")


def _labels(rows: Sequence[EncoderRow]) -> list[tuple[str, tuple[float, float], bool]]:
    """A name at the slowest point of each model and recipe, and whether it stands left, since a larger one is near."""
    slowest: dict[str, tuple[float, float]] = {}
    for row in rows:
        # other numbers make another file
        name = " ".join([find_model(row.model).encoder, *[row.recipe] * (row.recipe != "fp32")])
        place = (float(row.encoder_mb), float(row.encode_ms or 0))
        if place[1] > slowest.get(name, (0.0, 0.0))[1]:
            slowest[name] = place
    found: list[tuple[str, tuple[float, float], bool]] = []
    for name, (size, slow) in sorted(slowest.items(), key=lambda each: -each[1][0]):
        reach = _LETTER * (len(name) + 2)
        near = any(log(x / size) < reach and abs(log(slow / y)) < 0.1 for _, (x, y), _ in found)
        found.append((name, (size, slow), near))
    return found
