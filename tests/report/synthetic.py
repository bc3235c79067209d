"""A seeded, realistic night of a 96-well plate: tilt, bow, well-to-well scatter, a few failures, blank wells."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import numpy as np
from PIL import Image, ImageFilter

from mm_autofocus.report import FieldRecord, ReportData, summarise
from mm_autofocus.result import FocusResult, Sample, Status

DEPTH_OF_FIELD_UM = 1.4
BLANK = {"A1", "D6", "H1", "H12"}
TROUBLE = {
    "C4": (Status.LOW_CONFIDENCE, ("widen", "use_map"), "two peaks of almost the same height"),
    "F9": (Status.AT_LIMIT, ("widen",), "the sharpest image lies at the edge of the window"),
    "G2": (Status.NO_SIGNAL, ("use_map",), "no structure above the noise in any of 11 images"),
    "H1": (Status.NO_SIGNAL, ("use_map",), "no structure above the noise in any of 11 images"),
}


def _thumbnail(scene: np.ndarray, defocus_um: float, rng: np.random.Generator) -> bytes:
    image = Image.fromarray(scene).filter(ImageFilter.GaussianBlur(0.6 + 0.6 * abs(defocus_um)))
    noisy = np.asarray(image, float) + rng.normal(0, 3, scene.shape)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _scene(rng: np.random.Generator, blank: bool) -> np.ndarray:
    scene = np.full((160, 160), 22.0)
    yy, xx = np.mgrid[:160, :160]
    for _ in range(0 if blank else 14):
        x, y, r = rng.uniform(0, 160), rng.uniform(0, 160), rng.uniform(7, 12)
        cell = (((xx - x) / r) ** 2 + ((yy - y) / (r * rng.uniform(0.7, 1.3))) ** 2) < 1
        scene[cell] += rng.uniform(80, 170) * (0.8 + 0.2 * np.sin(xx + yy))[cell]
    return scene.clip(0, 255).astype(np.uint8)


def night(
    rows: int = 8, columns: int = 12, per_well: int = 2, *, truth: bool = True, thumbnails: bool = False, seed: int = 11
) -> ReportData:
    """Return the report data of one plate; with ``truth=False`` as from a real microscope."""
    rng = np.random.default_rng(seed)
    results: list[FocusResult] = []
    fields: list[FieldRecord] = []
    before: list[FieldRecord] = []
    for row in range(rows):
        for k in range(columns):
            column = k if row % 2 == 0 else columns - 1 - k
            well = f"{chr(ord('A') + row)}{column + 1}"
            height = 4210 + 1.9 * column - 1.1 * row + 0.25 * (column - 5.5) ** 2 + rng.normal(0, 1.5)
            for field in range(per_well):
                label = f"{well}_{field:04d}"
                true_z = height + rng.normal(0, 0.5)
                result = _run(label, well if field == 0 else "", true_z, len(results), rng)
                z = result.final if result.final is not None else result.end["z"]
                scene = _scene(rng, well in BLANK)
                images = (
                    (_thumbnail(scene, result.start["z"] - true_z, rng), _thumbnail(scene, z - true_z, rng))
                    if thumbnails
                    else (None, None)
                )
                fields.append(FieldRecord(
                    label=label, well=well, x=9000.0 * column + 700 * field, y=9000.0 * row, z=z,
                    truth_z=true_z if truth else None, blank=well in BLANK if truth else None,
                    result_index=len(results), before=images[0], after=images[1],
                ))  # fmt: skip
                before.append(fields[-1].model_copy(update={"z": 4214.0 + 0.35 * column, "result_index": None}))
                results.append(result)
    peer = [f.model_copy(update={"z": f.z + rng.normal(0, 1.1) if f.z is not None else None}) for f in fields]
    own = summarise("autofocus", fields, results, DEPTH_OF_FIELD_UM)
    compared = [
        summarise("without autofocus", before, [], DEPTH_OF_FIELD_UM),
        summarise("OughtaFocus", peer, [r.model_copy(update={"images": 24}) for r in results], DEPTH_OF_FIELD_UM),
    ]
    return ReportData(
        title="Plate scan HeLa-0417", created=datetime(2025, 3, 11, 22, 40, tzinfo=UTC),
        instrument={"Objective": "20×, NA 0.75, air", "Pixel": "0.325 µm", "Camera": "2048 × 2048, 16 bit"},
        plan={"Wells": str(rows * columns), "Fields": str(len(fields)), "Slices": "5, 2 µm apart",
              "Channels": "DAPI, FITC", "Duration": "1 h 52 min"},
        depth_of_field_um=DEPTH_OF_FIELD_UM, strategy="deepfocus, then sweep", results=results, fields=fields,
        methods=[own, *compared] if truth else [own],
        dataset={"path": "night/HeLa-0417", "images expected": 10 * len(fields), "images present": 10 * len(fields)},
        settings_toml='strategy = ["deepfocus", "sweep"]\nmin_confidence = 0.5\n\n[microscope]\nna = 0.75\n',
        notes=["The lamp of channel FITC was replaced before the run."],
    )  # fmt: skip


def _run(label: str, trouble: str, true_z: float, number: int, rng: np.random.Generator) -> FocusResult:
    status, action, reason = TROUBLE.get(trouble, (Status.CONVERGED, (), "the verifying frame is sharper"))
    spread = 8.0 * np.exp(-number / 15) + 0.9
    prior = true_z + rng.normal(0, spread)
    start = true_z + rng.normal(0, 4)
    end = true_z + rng.normal(0, 0.22)
    if not status.ok:
        end = true_z + rng.normal(0, 4)
    elif rng.random() < 0.01:
        end += 1.6
    zs = np.linspace(prior - 5, prior + 5, 9)
    width, level = 2.2, 0.0 if status is Status.NO_SIGNAL else 1.0

    def score(z: float) -> float:
        return float(0.2 + level / (1 + ((z - true_z) / width) ** 2) + rng.normal(0, 0.012))

    samples = [Sample(knobs={"z": start}, score=score(start), seconds=0.1, purpose="start")]
    samples += [Sample(knobs={"z": z}, score=score(z), seconds=0.3 + 0.1 * i) for i, z in enumerate(zs)]
    samples.append(Sample(knobs={"z": end}, score=score(end), seconds=1.4, purpose="verify"))
    confidence = float(rng.beta(18, 1.2)) if status.ok else float(rng.beta(2, 5))
    back = not status.ok
    return FocusResult(
        status=status, strategy="deepfocus" if status.ok else "sweep", start={"z": start},
        end={"z": start if back else end}, target={"z": end}, confidence=confidence, score=samples[-1].score,
        start_score=samples[0].score, samples=tuple(samples), images=len(samples) * (2 if "widen" in action else 1),
        dose=20.0 * len(samples), seconds=1.5 + rng.gamma(2, 0.2), moves=len(samples), reason=reason, action=action,
        final=true_z + float(rng.normal(0, 0.9)) if back else None, prior_mean=prior, prior_sd=float(spread),
        label=label, compute_seconds=0.21,
    )  # fmt: skip
