from dataclasses import replace

import numpy as np
import pytest

from mm_autofocus.estimators.aberration import Aberration
from mm_autofocus.simulation.electron_probe import blurred
from mm_autofocus.simulation.sem_column import SETUP_A, SETUP_B, SETUPS, Column
from mm_autofocus.simulation.sem_specimen import Specimen

QUIET = replace(SETUP_A, electrons_per_pixel=1e9, row_noise=0.0, dark_noise=0.0, magnification_per_um=(0.0, 0.0))
STILL = replace(QUIET, shift_um_per_um=(0.0, 0.0))
SPOT = (280, 200, 224, 168)


def column(setup=SETUP_A, kind="tin", seed=1, frame=(320, 240), **options) -> Column:
    made = Column(setup, kind, seed, **options)
    made.frame = frame
    return made


def displacement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Shift (x, y) of the second against the first, whole pixels."""
    cross = np.fft.fft2(second - second.mean()) * np.conj(np.fft.fft2(first - first.mean()))
    peak = np.fft.ifft2(cross / (np.abs(cross) + 1e-9 * np.abs(cross).max())).real
    y, x = np.unravel_index(np.argmax(peak), peak.shape)
    h, w = peak.shape
    return (x + w // 2) % w - w // 2, (y + h // 2) % h - h // 2


def test_the_same_commands_give_the_same_frames_and_a_frame_is_nothing_but_grey_levels():
    def session(seed: int) -> list[np.ndarray]:
        sem = column(seed=seed, kind="tissue", drift_um_per_min=5.0, charging=0.5)
        frames = [sem.scan()]
        sem.working_distance_um += 5
        sem.x_um = 2.0
        return [*frames, sem.scan(), sem.scan()]

    first, again, other = session(4), session(4), session(5)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).mean() > 0.5
        assert type(a) is np.ndarray
        assert a.dtype == np.uint8
        assert a.shape == (240, 320)
    assert (first[1] != first[2]).mean() > 0.5  # fresh noise


def test_truth_is_present_minus_best():
    sem = column(zero_error=Aberration(1.5, 0.2, -0.3))
    assert sem.truth().vector() == pytest.approx([1.5, 0.2, -0.3])
    sem.working_distance_um += 10
    sem.stig_x += 2
    sem.stig_y -= 1
    assert sem.truth().vector() == pytest.approx([11.5, 2.2, -1.3])
    sem.detune(Aberration(-7.0, 0.5, 0.25))
    assert sem.truth().vector() == pytest.approx([-7.0, 0.5, 0.25])


def test_truth_follows_the_height_of_the_specimen():
    sem = column(zero_error=Aberration(0.0))
    sem.x_um, sem.y_um = 300.0, -200.0
    assert sem.truth().defocus_um == pytest.approx(-sem.specimen.height_um(300.0, -200.0))


def test_every_column_is_off_by_something_of_its_own():
    errors = np.array([Column("A", "tin", seed).truth().vector() for seed in range(40)])
    assert errors.std(axis=0) == pytest.approx([2.0, 0.4, 0.4], rel=0.35)


@pytest.mark.parametrize("aberration", [Aberration(0.0), Aberration(8.0, 0.0, 0.0), Aberration(-3.0, 0.6, -0.4)])
def test_a_frame_is_the_specimen_under_the_probe_of_the_true_calibration(aberration):
    sem = column(STILL, kind="tin")
    sem.detune(aberration)
    frame = sem.scan().astype(float)
    view = sem.specimen.view(0, 0, 0.01, (496, 576))
    z, a, b = sem.calibration().to_blur(aberration, 0.01) / sem.calibration().blur_per_um(0.01)
    expected = blurred(view, 0.01, z, a, b, sem.setup.probe)[128:-128, 128:-128]
    assert np.corrcoef(frame.ravel(), expected.ravel())[0, 1] > 0.999
    # Grey is linear in yield: 255 * (0.5 + 0.8 (yield - 0.5)) at medium brightness and contrast.
    assert np.abs(frame - 255 * (0.1 + 0.8 * expected)).max() < 3


@pytest.mark.parametrize("setup", [QUIET, replace(QUIET, stigmator_rotation_deg=20.0)])
def test_scan_rotation_turns_content_and_stigmators_alike(setup):
    frames = {}
    for angle in (0.0, 90.0):
        sem = column(setup, kind="tin", seed=2)
        sem.scan_rotation_deg = angle
        sem.detune(Aberration(6.0, 0.8, 0.5))
        frames[angle] = sem.scan()[120 - 90 : 120 + 91, 160 - 90 : 160 + 91].astype(int)
    assert np.abs(frames[90.0] - np.rot90(frames[0.0])).max() <= 2
    assert np.abs(frames[90.0] - frames[0.0]).mean() > 5


def test_the_astigmatic_line_lies_where_the_calibration_says():
    sem = column(QUIET, kind="tin")
    sem.scan_rotation_deg = 45.0
    calibration = sem.calibration()
    assert calibration.stigmator_rotation_deg == pytest.approx(3.0 - 45.0)
    # Over focus, with an aberration that is +a in the image, the blur is long along x: x detail is lost first.
    wanted = calibration.from_blur(np.array([6.0, 4.0, 0.0]), 0.01)
    sem.detune(wanted)
    over = sem.scan().astype(float)
    sem.detune(Aberration(-wanted.defocus_um, wanted.stig_x, wanted.stig_y))
    under = sem.scan().astype(float)
    ratios = [np.diff(f, axis=1).std() / np.diff(f, axis=0).std() for f in (over, under)]
    assert ratios[0] < 0.65
    assert ratios[1] > 1.5


def test_the_image_shifts_with_working_distance():
    sem = column(QUIET, kind="tin")
    frames = []
    for z in (-2.0, 2.0):
        sem.detune(Aberration(z))
        frames.append(sem.scan().astype(float))
    # (0.012, -0.009) µm per µm, 4 µm, 10 nm pixels.
    assert displacement(*frames) == pytest.approx((4.8, -3.6), abs=1.0)


def test_the_shift_varies_over_the_field():
    # A column that magnifies ten times as strongly, so that whole pixels tell.
    stronger = tuple(10 * v for v in SETUP_A.magnification_per_um)
    sem = column(replace(STILL, magnification_per_um=stronger), frame=(1024, 768))
    frames = []
    for z in (-1.0, 1.0):
        sem.detune(Aberration(z))
        frames.append(sem.scan((0, 336, 1024, 96)).astype(float))
    left, right = (displacement(*(f[:, part] for f in frames))[0] for part in (slice(0, 128), slice(-128, None)))
    assert right - left == pytest.approx(10 * 2e-4 * 2 * 896, abs=1.0)


def test_a_part_of_the_frame_is_what_the_whole_shows_there():
    sem = column(replace(QUIET, magnification_per_um=(2e-4, 1e-4)), kind="tin", frame=(512, 384))
    sem.detune(Aberration(4.0, 0.3, 0.0))
    whole = sem.scan()
    x, y, width, height = SPOT
    part = sem.scan(SPOT)
    assert part.shape == (height, width)
    assert np.abs(part.astype(int) - whole[y : y + height, x : x + width]).max() <= 3


@pytest.mark.parametrize("roi", [(-1, 0, 10, 10), (0, 0, 321, 10), (0, 200, 10, 41), (0, 0, 0, 5)])
def test_a_part_outside_the_frame_is_refused(roi):
    with pytest.raises(ValueError, match="roi"):
        column().scan(roi)


def test_the_stage_moves_the_image():
    sem = column(STILL, kind="tin")
    before = sem.scan()
    sem.x_um += 0.4
    after = sem.scan()
    assert np.abs(after[:, :-40].astype(int) - before[:, 40:]).mean() < 1


def test_dose_is_that_of_the_beam():
    sem = column()
    assert sem.frame_dose() == pytest.approx(1.5e-9 * 200e-9 / 1.602e-19 / 100, rel=1e-6)  # 18.7 e-/nm²
    sem.dwell_ns, sem.pixel_nm = 100.0, 20.0
    sem.scan()
    sem.scan()
    assert sem.dose == pytest.approx(2 * 18.73 / 8, rel=1e-3)
    assert sem.frames == 2


def test_a_blanked_beam_is_dark_and_gives_no_dose():
    sem = column()
    sem.blanked = True
    frame = sem.scan()
    assert frame.mean() < 40
    assert frame.std() < 4
    assert sem.dose == 0
    assert sem.clock_s > 0


@pytest.mark.parametrize(("dwell", "electrons"), [(50.0, 21.0), (200.0, 84.0), (800.0, 336.0)])
def test_shot_noise_is_that_of_the_detected_electrons(dwell, electrons):
    sem = column(replace(SETUP_A, row_noise=0.0))
    sem.dwell_ns = dwell
    first, second = sem.scan().astype(float), sem.scan().astype(float)
    mean = (first + second) / 2
    keep = (mean > 60) & (mean < 200)
    signal = (mean[keep] / 255 - 0.1) / 0.8
    measured = np.var(first[keep] - second[keep]) / 2 / (255 * 0.8) ** 2
    # Rounding to whole grey levels adds 1/12.
    assert measured - 1 / 12 / 204**2 == pytest.approx(np.mean(signal) / electrons, rel=0.05)


def test_few_electrons_are_counted():
    sem = column(replace(SETUP_A, electrons_per_pixel=2.0, row_noise=0.0))
    assert len(np.unique(sem.scan())) < 20


def test_rows_have_offsets():
    frames = [column(replace(SETUP_A, row_noise=noise), kind="tissue").scan().astype(float) for noise in (0.0, 6.0)]
    rows = [np.diff(f.mean(axis=1)).std() for f in frames]
    assert np.sqrt(rows[1] ** 2 - rows[0] ** 2) == pytest.approx(6 * np.sqrt(2), rel=0.25)


def test_brightness_and_contrast():
    sem = column(QUIET)
    normal = sem.scan().astype(float)
    sem.brightness = 60.0
    assert sem.scan().mean() == pytest.approx(normal.mean() + 25.5, abs=3)
    sem.brightness, sem.contrast = 50.0, 30.0
    assert sem.scan().std() == pytest.approx(normal.std() / 2, rel=0.1)


def test_knobs_clamp_like_hardware_and_refuse_what_is_no_number():
    sem = column()
    sem.working_distance_um, sem.stig_x, sem.stig_y, sem.pixel_nm = 1e6, 99.0, -99.0, 0.01
    assert (sem.working_distance_um, sem.stig_x, sem.stig_y, sem.pixel_nm) == (20000.0, 30.0, -30.0, 1.0)
    for name in ("working_distance_um", "stig_x", "stig_y", "pixel_nm"):
        with pytest.raises(ValueError, match=name):
            setattr(sem, name, float("nan"))
    with pytest.raises(ValueError, match="frame"):
        sem.frame = (640, 480)


@pytest.mark.parametrize(
    ("asked", "kept"), [(1.0, 50.0), (60.0, 50.0), (290.0, 400.0), (210.0, 200.0), (5000.0, 800.0)]
)
def test_dwell_times_come_in_powers_of_two(asked, kept):
    sem = column()
    sem.dwell_ns = asked
    assert sem.dwell_ns == kept


def test_magnification_is_that_of_a_polaroid():
    sem = column(frame=(1024, 768))
    sem.magnification = 11_162.1
    assert sem.pixel_nm == pytest.approx(10.0, rel=1e-4)
    assert sem.magnification == pytest.approx(11_162.1)


def test_focus_drifts_with_the_clock_at_the_rate_asked_for():
    moved = []
    for seed in range(6):
        sem = column(seed=seed, drift_um_per_min=0.5)
        start = sem.truth()
        sem.advance(3600.0)
        moved.append(abs(sem.truth().defocus_um - start.defocus_um))
        assert sem.truth().stig_x != start.stig_x
    assert np.mean(moved) == pytest.approx(30.0, rel=0.1)


def test_frames_take_their_time():
    sem = column(frame=(1024, 768))
    sem.scan(SPOT)
    assert sem.clock_s == pytest.approx(200e-9 * 224 * 168 * 1.08)
    assert sem.frame_s == pytest.approx(200e-9 * 1024 * 768 * 1.08)


def test_the_specimen_drifts_sideways():
    sem = column(STILL, kind="tin", image_drift_nm_per_min=600.0)
    sem.detune(Aberration(0.0))
    before = sem.scan().astype(float)
    sem.advance(30.0)
    dx, dy = displacement(before, sem.scan().astype(float))
    assert np.hypot(dx, dy) == pytest.approx(30, abs=1.5)


def test_charging_creeps_with_dose_and_leaks_away():
    sem = column(STILL, kind="tin", charging=1.0)
    first = sem.scan().astype(float)
    for _ in range(15):
        last = sem.scan().astype(float)
    assert np.hypot(*displacement(first, last)) > 3
    assert last.std() < 0.9 * first.std()
    sem.advance(3600.0)
    rested = sem.scan().astype(float)
    assert np.abs(rested - first).mean() < 2


def test_inside_a_blood_vessel_there_is_little_to_see():
    specimen = Specimen("tissue", 1, 0.4)
    blank = specimen.blank_map(0, 0, 0.5, (128, 128))
    solid = blank & np.roll(blank, 5, 0) & np.roll(blank, -5, 0) & np.roll(blank, 5, 1) & np.roll(blank, -5, 1)
    y, x = 0.5 * (np.argwhere(solid)[0] - 64)
    sem = column(QUIET, kind="tissue", specimen=specimen)
    tissue = Column(QUIET, "tissue", 1)
    tissue.frame = (320, 240)
    sem.x_um, sem.y_um = float(x), float(y)
    assert np.median(np.abs(np.diff(sem.scan().astype(float)))) < np.median(
        np.abs(np.diff(tissue.scan().astype(float)))
    )


def test_setup_b_differs_in_everything_that_a_model_could_rely_on():
    assert SETUPS["B"] is SETUP_B
    assert SETUP_B.landing_kv == 1.2
    a, b = (Column(name, "tissue", 1) for name in "AB")
    assert (a.working_distance_um, b.working_distance_um) == (4500.0, 6000.0)
    one, other = a.calibration(), b.calibration()
    assert one.convergence_mrad / other.convergence_mrad > 1.2
    assert one.stigmator_um / other.stigmator_um > 1.2
    # Turned by 90 degrees, both components of the astigmatism change sign.
    unit = Aberration(0.0, 1.0, 0.0)
    assert np.sign(one.to_blur(unit, 0.01)[1]) == -np.sign(other.to_blur(unit, 0.01)[1])
