"""The main job end to end: on the shipped recordings, on files of every kind, and on files it must refuse."""

import re
import signal
import struct
import subprocess
import sys
import wave

import numpy as np
import pytest
from scipy import signal as ss

import linscan
from linscan.data import load_co2, load_ecg
from linscan.demo import cli, clock, job, main, picture
from linscan.demo.read import BadFile, read

FS = 250.0
SIGNAL = np.sin(2 * np.pi * 8 * np.arange(1500) / FS) + 0.5 * np.cumsum(np.random.default_rng(0).normal(size=1500)) / 20

NUMBER = r"([-+0-9.]+(?:e[-+]?\d+)?)"


def write_wav(path, samples, width=2, channels=1, fs=250):
    """`samples` in [-1, 1) as PCM, the same in every channel but for its sign."""
    full = 2 ** (8 * width - 1)
    whole = np.clip(np.rint(np.asarray(samples) * full), -full, full - 1).astype(np.int64)
    frames = np.stack([whole * (-1) ** c for c in range(channels)], axis=1)
    frames = np.minimum(frames, full - 1)
    if width == 1:
        frames = frames + 128
    little = np.ascontiguousarray(frames.astype("<i8"))
    data = little.view("u1").reshape(*frames.shape, 8)[:, :, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(fs)
        file.writeframes(data)
    return path


def write_csv(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def run(tmp_path, *arguments):
    """Exit code of the job with its results in a folder of the test's own."""
    return main([*map(str, arguments), "--out", str(tmp_path / "out"), "--no-timing"])


def apart(text):
    """The norm-wise differences of the three ways, as printed."""
    found = re.findall(rf"(?:against scan|against single steps|against steps)\s+{NUMBER}", text)
    return [float(x) for x in found]


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_both_recordings_in_a_fresh_process(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "linscan", "demo", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["co2.npz", "co2.png", "ecg.npz", "ecg.png"]
    text = result.stdout
    assert len(apart(text)) == 6
    assert max(apart(text)) < 1e-13  # float64, a few hundred roundings of a decaying state
    kept = [(float(a), float(b)) for a, b in re.findall(rf"recalls {NUMBER} %.*: {NUMBER} %", text)]
    assert len(kept) == 2
    for ours, best in kept:
        assert best - 0.5 < ours <= best + 0.1
    times = re.findall(rf"{NUMBER} ms\s+{NUMBER} ms\s+{NUMBER}x", text)
    assert len(times) == 2 * clock.COMPARISONS
    for ours, theirs, faster in times:
        assert float(faster) == pytest.approx(float(theirs) / float(ours), rel=0.2, abs=0.06)
    for name in ("ecg", "co2"):
        width, height = png_size(tmp_path / f"{name}.png")
        assert width >= 1000
        assert height >= 700
        assert 30_000 < (tmp_path / f"{name}.png").stat().st_size < 600_000
    with np.load(tmp_path / "ecg.npz") as file:
        ecg, fs, _ = load_ecg()
        sos = ss.butter(4, 0.5, "highpass", fs=fs, output="sos")
        expected = ss.sosfilt(sos, ecg, zi=ss.sosfilt_zi(sos) * ecg[0])[0]
        np.testing.assert_array_equal(file["signal"], ecg)
        assert np.linalg.norm(file["filtered"] - expected) < 1e-11 * np.linalg.norm(expected)
        through = ss.fftconvolve(file["filtered"], file["kernel"])[: ecg.size]
        assert np.linalg.norm(file["output"] - through) < 1e-13 * np.linalg.norm(through)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_is_read_to_its_last_bit(tmp_path, width, channels):
    expected = np.rint(SIGNAL / 4 * 2 ** (8 * width - 1)) / 2 ** (8 * width - 1)
    path = write_wav(tmp_path / "x.WAV", SIGNAL / 4, width, channels)
    samples, fs = read(path, channel=channels - 1)
    assert fs == 250.0
    np.testing.assert_array_equal(samples, expected * (-1) ** (channels - 1))


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f8", "i2", "?"])
def test_npy_is_read(tmp_path, dtype):
    array = (SIGNAL * 10).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    samples, fs = read(tmp_path / "x.npy")
    assert fs is None
    np.testing.assert_array_equal(samples, array.astype("f8"))
    for table in (np.stack([array, array], 0), np.stack([array, array], 1)):
        np.save(tmp_path / "x.npy", table)
        np.testing.assert_array_equal(read(tmp_path / "x.npy", channel=1)[0], array.astype("f8"))


@pytest.mark.parametrize("separator", [",", "; ", "\t", "  "])
@pytest.mark.parametrize(
    "header", ["", "\ufeff", "left{}right\n", "# made by hand\n\nleft{}right\n", "\ufeffleft{}right\n"]
)
def test_csv_is_read(tmp_path, separator, header):
    rows = "\n".join(f"{x!r}{separator}{-x!r}" for x in map(float, SIGNAL))
    path = write_csv(tmp_path / "x.csv", header.format(separator) + rows + "\n\n")
    samples, fs = read(path, channel=1)
    assert fs is None
    np.testing.assert_array_equal(samples, -SIGNAL)


def test_csv_time_column_gives_the_sampling_rate(tmp_path):
    rows = "".join(f"{t / FS:.4f},{x!r}\n" for t, x in enumerate(map(float, SIGNAL)))
    path = write_csv(tmp_path / "x.csv", "time,value\n" + rows)
    samples, fs = read(path)
    assert fs == pytest.approx(FS, rel=1e-6)
    np.testing.assert_array_equal(samples, SIGNAL)
    assert read(path, fs=10.0)[1] == 10.0


@pytest.mark.parametrize("kind", ["wav", "npy", "csv"])
def test_job_on_a_file_of_each_kind(tmp_path, capsys, kind):
    path = tmp_path / f"mine.{kind}"
    if kind == "wav":
        write_wav(path, SIGNAL / 4)
    elif kind == "npy":
        np.save(path, SIGNAL)
    else:
        write_csv(path, "\n".join(map(repr, map(float, SIGNAL))))
    assert run(tmp_path, path, "--engine", "reference", *([] if kind == "wav" else ["--fs", FS])) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "1500 samples, 250 Hz, 6 s" in captured.out
    assert "engine reference" in captured.out
    assert "fitted to a wavelet at 8" in captured.out  # the rhythm that is in the signal
    assert len(apart(captured.out)) == 3
    assert max(apart(captured.out)) < 1e-13
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["mine.npz", "mine.png"]


@pytest.mark.parametrize(
    "samples", [np.zeros(64), np.full(65, -3.5), np.arange(100) % 2], ids=["zero", "constant", "fastest"]
)
def test_job_on_the_shortest_and_dullest_signals(tmp_path, capsys, samples):
    np.save(tmp_path / "x.npy", samples)
    assert run(tmp_path, tmp_path / "x.npy") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "nan" not in captured.out
    assert max(apart(captured.out)) < 1e-13


def bad_files(folder):
    """(what it is, arguments, what the message says) of everything that must be refused."""
    write_wav(folder / "stereo.wav", SIGNAL / 4, channels=2)
    whole = write_wav(folder / "whole.wav", SIGNAL / 4).read_bytes()
    (folder / "cut.wav").write_bytes(whole[:-1000])
    (folder / "head.wav").write_bytes(whole[:20])
    (folder / "float.wav").write_bytes(whole[:20] + b"\x03" + whole[21:])
    (folder / "text.wav").write_text("hello")
    write_wav(folder / "none.wav", [])
    (folder / "empty.csv").write_text("")
    (folder / "folder.csv").mkdir()
    numbers = [str(x) for x in SIGNAL[:100]]
    write_csv(folder / "words.csv", "value\n" + "\n".join([*numbers, "abc"]))
    write_csv(folder / "blank.csv", "a,b\n" + "\n".join(f"{x},{x}" for x in numbers) + "\n1,\n")
    write_csv(folder / "ragged.csv", "\n".join([*(f"{x},{x}" for x in numbers), "1,2,3"]))
    write_csv(folder / "nan.csv", "\n".join([*numbers, "nan", "inf"]))
    write_csv(folder / "three.csv", "\n".join(f"{x},{x},{x}" for x in numbers))
    write_csv(folder / "header.csv", "# nothing but a comment\n")
    write_csv(folder / "short.csv", "\n".join(numbers[:5]))
    (folder / "binary.csv").write_bytes(bytes(range(256)))
    (folder / "x.mp3").write_bytes(b"ID3")
    np.save(folder / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.save(folder / "complex.npy", SIGNAL * 1j)
    np.save(folder / "strings.npy", np.array(["a", "b"]))
    np.save(folder / "cube.npy", np.zeros((70, 70, 70)))
    np.save(folder / "nothing.npy", np.zeros(0))
    np.save(folder / "nan.npy", np.where(np.arange(1500) == 7, np.nan, SIGNAL))
    np.save(folder / "good.npy", SIGNAL)
    (folder / "cut.npy").write_bytes((folder / "good.npy").read_bytes()[:5000])
    (folder / "text.npy").write_text("hello")
    np.savez(folder / "several.npz", a=SIGNAL, b=SIGNAL)
    (folder / "several.npz").rename(folder / "several.npy")
    good = folder / "good.npy"
    return [
        ([folder / "missing.wav"], "No such file"),
        ([folder / "stereo.wav"], "has 2 channels; choose one with --channel 0 to 1"),
        ([folder / "stereo.wav", "--channel", 2], "there is no channel 2"),
        ([folder / "cut.wav"], "promises 1500 samples, the file has 1000"),
        ([folder / "head.wav"], "not a PCM .wav file"),
        ([folder / "float.wav"], "not a PCM .wav file"),
        ([folder / "text.wav"], "not a PCM .wav file"),
        ([folder / "none.wav"], "holds 0 samples"),
        ([folder / "empty.csv"], "is empty"),
        ([folder / "folder.csv"], "is a folder"),
        ([folder / "words.csv"], "line 102: 'abc' is not a number"),
        ([folder / "blank.csv", "--channel", 0], "line 102: a blank cell"),
        ([folder / "ragged.csv"], "line 101 has 3 columns where 2"),
        ([folder / "nan.csv"], "sample 100 is nan (2 such)"),
        ([folder / "three.csv"], "has 3 channels"),
        ([folder / "header.csv"], "holds no samples"),
        ([folder / "short.csv"], "holds 5 samples"),
        ([folder / "binary.csv"], "is not text"),
        ([folder / "x.mp3"], "unknown kind of file '.mp3'"),
        ([folder / "objects.npy"], "Python objects"),
        ([folder / "complex.npy"], "complex128"),
        ([folder / "strings.npy"], "<U1"),
        ([folder / "cube.npy"], "(70, 70, 70)"),
        ([folder / "nothing.npy"], "holds 0 samples"),
        ([folder / "nan.npy"], "sample 7 is nan (1 such)"),
        ([folder / "cut.npy"], "is cut short"),
        ([folder / "text.npy"], "not a .npy array"),
        ([folder / "several.npy"], "several arrays"),
        ([good, "--fs", 0], "--fs must be a positive number"),
        ([good, "--fs", "nan"], "--fs must be a positive number"),
        ([good, "--fs", 100, "--cutoff", 50], "--cutoff must lie between"),
        ([good, "--centre", 0], "--centre must lie between"),
        ([good, "--fs", 1000, "--centre", 0.4], "--centre must lie between 0.5 and"),
        ([good, "--engine", "abacus"], "--engine must be one of"),
        ([good, "--engine", "cuda"], "cuda"),
        ([good, "--colour"], "--colour"),
        ([good, good], "unrecognized"),
    ]


def test_bad_files_get_one_clear_line_and_exit_code_2(tmp_path, capsys):
    for arguments, message in bad_files(tmp_path):
        assert run(tmp_path, *arguments) == 2, arguments
        captured = capsys.readouterr()
        assert captured.out == "", arguments
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith("linscan demo: "), captured.err
        assert message in captured.err
        assert not (tmp_path / "out").exists()


def test_bad_file_in_a_fresh_process(tmp_path):
    np.save(tmp_path / "x.npy", np.array([None]), allow_pickle=True)
    result = subprocess.run(
        [sys.executable, "-m", "linscan", "demo", str(tmp_path / "x.npy")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_results_are_not_overwritten_without_force(tmp_path, capsys):
    np.save(tmp_path / "x.npy", SIGNAL)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.png").write_text("a picture of mine")
    assert run(tmp_path, tmp_path / "x.npy") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "x.png: is already there; --force overwrites it" in error
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.png"]
    assert run(tmp_path, tmp_path / "x.npy", "--force") == 0
    assert png_size(tmp_path / "out" / "x.png")[0] >= 1000


def test_out_that_is_a_file_is_refused(tmp_path, capsys):
    np.save(tmp_path / "x.npy", SIGNAL)
    (tmp_path / "out").write_text("")
    assert run(tmp_path, tmp_path / "x.npy") == 2
    assert "is not a folder" in capsys.readouterr().err


def test_ctrl_c_leaves_complete_files_only(tmp_path, capsys, monkeypatch):
    def interrupted(recording, result, caption, path):
        path.write_bytes(b"half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(picture, "draw", interrupted)
    np.save(tmp_path / "x.npy", SIGNAL)
    assert run(tmp_path, tmp_path / "x.npy") == 130
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "interrupted" in captured.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.npz"]
    with np.load(tmp_path / "out" / "x.npz") as file:
        np.testing.assert_array_equal(file["signal"], SIGNAL)


def test_ctrl_c_that_comes_out_as_another_error(tmp_path, capsys, monkeypatch):
    def lost(recording, tick, xp):  # as Numba does while it compiles
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("no compiled object yet") from None

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(job, "run", lost)
    np.save(tmp_path / "x.npy", SIGNAL)
    assert run(tmp_path, tmp_path / "x.npy") == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_of_our_own_is_not_hidden(tmp_path, monkeypatch):
    def broken(recording, tick, xp):
        raise RuntimeError("a bug")

    monkeypatch.setattr(job, "run", broken)
    np.save(tmp_path / "x.npy", SIGNAL)
    with pytest.raises(RuntimeError, match="a bug"):
        run(tmp_path, tmp_path / "x.npy")


def test_without_matplotlib_everything_else_is_done(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    np.save(tmp_path / "x.npy", SIGNAL)
    assert run(tmp_path, tmp_path / "x.npy") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "linscan[plot]" in line] == [
        'No picture: matplotlib is not installed; `pip install "linscan[plot]"` adds it.'
    ]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.npz"]


def test_progress_bar_after_a_second_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with cli._progress("ecg", 3) as tick:
        tick(1)
    assert capsys.readouterr().err == ""  # under a second: nothing
    monkeypatch.setattr(cli, "BAR_AFTER", 0.0)
    with cli._progress("ecg", 3) as tick:
        tick(3)
    assert "ecg" in capsys.readouterr().err


def dense_legs(u, order):
    """The bilinear LegS recurrence as written, one dense solve a sample."""
    s = np.sqrt(2 * np.arange(order) + 1)
    A = -np.tril(np.outer(s, s), -1) - np.diag(np.arange(order) + 1.0)
    x, one = np.zeros(order), np.eye(order)
    for t, value in enumerate(u, 1):
        x = np.linalg.solve(one - A / (2 * t), (one + A / (2 * t)) @ x + s * value / t)
    return x


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_memory_as_scans_is_the_legs_recurrence(engine):
    if not linscan.available()[engine].ready:
        pytest.skip(linscan.available()[engine].detail)
    u = load_co2()[0][:300]
    with linscan.use_engine(engine):
        memory = job.remember(u, 48, lambda done: None)
    expected = dense_legs(u - u[0], 48)
    assert np.linalg.norm(memory - expected) < 1e-13 * np.linalg.norm(expected)
    assert memory[0] == pytest.approx(np.mean(u - u[0]), rel=0.01)  # the coefficient of P_0 is the mean of the past


def test_memory_recalls_a_polynomial_of_its_degree():
    past = np.linspace(-1, 1, 4000)
    u = 3 + past - 2 * past**3 + 0.5 * past**6
    recalled = job.recall(job.remember(u, 7, lambda done: None), u[0], u.size)
    assert np.linalg.norm(recalled - u) < 2e-3 * np.linalg.norm(u)  # the discretisation's O(1/T)
    assert np.linalg.norm(job.nearest_polynomial(u, 7) - u) < 1e-12 * np.linalg.norm(u)


@pytest.mark.parametrize(("fs", "centre"), [(360.0, 10.0), (365.25 / 7, 1.0), (16000.0, 440.0)])
def test_kernel_is_the_wavelet_it_was_fitted_to(fs, centre):
    (a_bar, w, c), target = job.fit_wavelet(fs, centre, job.wavelet_length(fs, centre))
    lag = np.arange(target.size)
    kernel = 2 * ((c * w)[:, None] * a_bar[:, None] ** lag).sum(0).real
    assert np.linalg.norm(kernel - target) < 0.05 * np.linalg.norm(target)
    gain = np.abs(np.sum(kernel * np.exp(-2j * np.pi * centre / fs * lag)))
    assert gain == pytest.approx(1, abs=0.03)
    assert np.abs(kernel.sum()) < 0.01  # no gain for the baseline
    assert np.abs(a_bar**target.size).max() < 1e-17  # what the kernel leaves out


def test_long_recordings_are_scanned_in_blocks_that_hand_on_their_state(monkeypatch):
    modes, _ = job.fit_wavelet(FS, 8.0, 1000)
    whole = job.apply_by_scan(SIGNAL, modes, lambda done: None)
    ticks = []
    monkeypatch.setattr(job, "_BLOCK", 401)
    np.testing.assert_allclose(job.apply_by_scan(SIGNAL, modes, ticks.append), whole, rtol=0, atol=1e-14)
    assert len(ticks) == 4


def test_differences_compare_the_common_part():
    assert job.differences(np.array([3.0, 3.5]), np.array([3.0, 4.0, 9.0])) == (0.1, 0.5)
    assert job.differences(np.array([1.0]), np.array([0.0])) == (1.0, 1.0)


def test_shipped_recordings():
    ecg, fs, _ = load_ecg()
    beats = ss.sosfiltfilt(ss.butter(3, (5, 20), "bandpass", fs=fs, output="sos"), ecg)
    assert ss.find_peaks(beats, 0.3, distance=fs / 4)[0].size == 100
    co2, per_year, _ = load_co2()
    assert np.isfinite(co2).all()
    power = np.abs(np.fft.rfft(ss.detrend(co2) * np.hanning(co2.size)))
    strongest = 20 + np.argmax(power[20:])
    assert strongest * per_year / co2.size == pytest.approx(1, abs=0.03)  # the year


def test_read_names_what_it_takes(tmp_path):
    with pytest.raises(BadFile, match=r"use \.wav, \.npy, \.csv"):
        read(tmp_path / "x.flac")
