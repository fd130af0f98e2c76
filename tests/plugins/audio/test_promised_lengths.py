"""The length of a recording is that of its sound, whatever its header promises, guesses or leaves out."""

import struct

import numpy as np
import pytest
import soundfile

from maemm import Rng
from maemm_plugins._sounds.promises import chained, length_is_recorded
from maemm_plugins.audio.load import Cut, load_wave
from maemm_plugins.audio.read import Recording
from maemm_plugins.audio.sources import open_audio
from maemm_plugins.signal.sources import open_signals

RATE = 16000


def tone(seconds, quiet=0.0):
    """(samples,) noise whose first ``quiet`` seconds are silent."""
    x = np.random.default_rng(0).standard_normal(round(seconds * RATE)).astype(np.float32) * 0.1
    x[: round(quiet * RATE)] = 0
    return x


def mp3(path, x, mode="VARIABLE", header=True):
    soundfile.write(path, x, RATE, format="MP3", bitrate_mode=mode, compression_level=0.5)
    data = path.read_bytes()
    if not header:  # the frame that counts the others comes first, behind a tag where there is one
        at = max(data.find(b"Xing"), data.find(b"Info"))
        begin = data.rfind(b"\xff", 0, at)
        begin = next(i for i in range(at, -1, -1) if data[i] == 0xFF and data[i + 1] & 0xE0 == 0xE0)
        second = next(i for i in range(at + 120, len(data)) if data[i : i + 2] == data[begin : begin + 2])
        data = data[second:]
        path.write_bytes(data)
    return data


def length_of(path):
    recording = Recording.open(path)
    whole = recording.read(0, recording.length)
    middle = recording.length // 2
    part = recording.read(middle, 2000)[:, 0]  # seeking lands on the same samples
    there = whole[middle : middle + 2000, 0]
    assert len(part) == 2000 and np.corrcoef(part, there)[0, 1] > 0.99
    assert abs(len(whole) - recording.length) <= 0.1 * recording.rate
    return recording.seconds


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT", "AVERAGE"])
@pytest.mark.parametrize("quiet", [0.0, 1.0])
def test_an_mp3_without_its_header_frame(tmp_path, mode, quiet):
    """The first frame says nothing about the others; a quiet start made the guess up to six times too long."""
    path = tmp_path / "a.mp3"
    mp3(path, tone(4.0, quiet), mode, header=False)
    assert not length_is_recorded(str(path).encode())
    assert length_of(path) == pytest.approx(4.0, abs=0.15)


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_with_its_header_frame_and_tags(tmp_path, mode):
    """Tags before and behind are no sound, and the recorded length holds to the sample."""
    path = tmp_path / "a.mp3"
    data = mp3(path, tone(2.0), mode)
    cover = b"ID3\x04\0\0" + bytes([0, 2, 0, 0]) + b"\xff\xfb" * 2**14  # 32 kB that look like frames
    ape = b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 1, 0) + bytes(1968)
    path.write_bytes(cover + data + ape[:32] + bytes(1968 - 32) + ape[:32] + b"TAG" + bytes(125))
    assert length_of(path) == pytest.approx(2.0, abs=0.1)


def test_mp3s_one_behind_the_other(tmp_path):
    path = tmp_path / "a.mp3"
    data = mp3(path, tone(2.0))
    assert length_is_recorded(str(path).encode())
    path.write_bytes(data + data)
    assert not length_is_recorded(str(path).encode())
    assert length_of(path) == pytest.approx(4.0, abs=0.3)  # each adds its encoder's padding


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_ogg_streams_one_behind_the_other(tmp_path, codec):
    path = tmp_path / "a.ogg"
    soundfile.write(path, tone(1.5), RATE, format="OGG", subtype=codec)
    first = path.read_bytes()
    assert not chained(str(path).encode())
    soundfile.write(path, tone(2.5), RATE, format="OGG", subtype=codec)
    path.write_bytes(first + path.read_bytes())
    assert chained(str(path).encode())
    assert length_of(path) == pytest.approx(4.0, abs=0.1)
    windows = open_audio(str(path), slide=1.0)
    assert len(windows) in (4, 5) and windows.read(3, Rng((0,))).raw["audio"].length > 0.9 * RATE


def test_a_flac_that_does_not_count_its_samples(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(2.0), RATE)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # the 36 bits of the total
    path.write_bytes(data)
    assert length_of(path) == 2.0
    signal = open_signals(str(tmp_path), window=RATE)
    assert len(signal) == 2 and signal.read(1, Rng((0,))).raw["signal"]["x"].shape == (1, RATE)


@pytest.mark.parametrize("count", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_that_was_streamed(tmp_path, count):
    path = wav(tmp_path, count)
    assert length_of(path) == 2.0


def wav(folder, count):
    """2 s whose header counts ``count`` bytes."""
    path = folder / "a.wav"
    soundfile.write(path, tone(2.0), RATE)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", count)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "count, reason", [(100, "100 bytes of sound, 63900 more follow"), (70000, "cut off: 6000 of 70000")]
)
def test_a_wav_whose_header_is_wrong(tmp_path, count, reason):
    with pytest.raises(ValueError, match=reason):
        Recording.open(wav(tmp_path, count))
    assert Recording.open(wav(tmp_path, count), "read").length == min(count // 2, 32000)
    bad = open_signals(str(tmp_path))
    with pytest.raises(ValueError, match="bytes"):
        bad.read(0, Rng((0,)))


def test_a_wav_with_chunks_behind_its_sound(tmp_path):
    path = wav(tmp_path, 64000)
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 2000) + bytes(2000))
    assert length_of(path) == 2.0


@pytest.mark.parametrize("kind", ["aiff", "au", "w64", "rf64"])
def test_other_headers_that_promise_more(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, tone(1.0), RATE, format=kind.upper(), subtype="PCM_16")
    assert length_of(path) == 1.0
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(ValueError, match="cut off: the header promises"):
        Recording.open(path)


@pytest.mark.parametrize("kept", [0.4, 0.9])
def test_a_flac_that_ends_too_early(tmp_path, kept):
    """The header is whole, and so is every part before the end."""
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(4.0), RATE)
    assert length_of(path) == 4.0
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match="cut off"):
        Recording.open(path)
    assert len(Recording.open(path, "read").read(0, RATE)) == RATE


@pytest.mark.parametrize("copies", [1, 3])
def test_aac_without_a_container(tmp_path, copies):
    """ADTS has no header of its own: its length is that of its frames."""
    av = pytest.importorskip("av")
    path = tmp_path / "a.aac"
    with av.open(str(path), "w", format="adts") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(2.0, quiet=1.5)[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes() * copies)
    recording = Recording.open(path)
    assert recording.seconds == pytest.approx(2.1 * copies, abs=0.1)
    assert len(recording.read(0, recording.length)) == recording.length


def test_telephone_sound_is_read_from_its_start(tmp_path):
    """GSM 6.10 cannot seek: what comes before is decoded, also for a part before the last one."""
    soundfile.write(tmp_path / "a.wav", tone(4.0), 8000, subtype="GSM610")
    recording = Recording.open(tmp_path / "a.wav")
    whole = recording.read(0, recording.length)
    for start in (0, 20000, 5000):
        assert np.array_equal(recording.read(start, 3000), whole[start : start + 3000])
    assert load_wave(recording, Cut(RATE, 8000, 400), Rng((1,))).std() > 0
    signal = open_signals(str(tmp_path), window=8000)
    assert np.array_equal(signal.read(2, Rng((0,))).raw["signal"]["x"][0], whole[16000:24000, 0])


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3"])
def test_a_picture_under_the_name_of_a_sound(tmp_path, kind):
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (64, 48), (9, 99, 200)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / f"a.{kind}")
    with pytest.raises(ValueError, match=r"no sound \(streams: video mjpeg\)"):
        Recording.open(tmp_path / f"a.{kind}")


def test_sound_of_a_codec_that_nothing_decodes(tmp_path):
    """Not "'NoneType' object has no attribute 'sample_rate'"."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mka"), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
    data = (tmp_path / "a.mka").read_bytes()
    (tmp_path / "a.mka").write_bytes(data.replace(b"A_PCM/INT/LIT", b"A_NOTHING/XYZ"))
    with pytest.raises(ValueError, match="its sound is of a codec that FFmpeg cannot decode here"):
        Recording.open(tmp_path / "a.mka")
