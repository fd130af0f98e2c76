import faulthandler
import json
import os
import signal
import time
import warnings

import pytest
import torch

from maemm.contract import Modality, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample, BadSampleLog, reason_of
from maemm.data.loader import Loader
from maemm.data.order import SequentialBatches, ShuffledBatches


class Numbers(Source):
    """Sample i is the number i; ``trouble`` {index: what to do instead}."""

    classes = ["even", "odd"]

    def __init__(self, n=40, trouble=None, labels=True):
        self.n, self.trouble, self.labels = n, trouble or {}, labels
        self.reads = 0

    def __len__(self):
        return self.n

    def name(self, index):
        return f"numbers/{index}"

    def read(self, index, rng):
        self.reads += 1
        if index in self.trouble:
            self.trouble[index]()
        offset = float(rng.uniform("offset"))
        return Sample({"number": (index, offset)}, self.name(index), index % 2 if self.labels else None)


class Number(Modality):
    def load(self, raw, rng):
        noise = torch.zeros(3) if rng is None else rng.uniform("noise", 3)[0]
        return {"x": torch.tensor(raw), "noise": noise}

    tokenize = connect = output_dim = embed = position = target = None


def fail(error):
    def act():
        raise error

    return act


def loader(source=None, workers=0, micro_batch=4, **options):
    source = source or Numbers()
    aug_repeats = options.pop("aug_repeats", 1)
    order = ShuffledBatches(len(source), 8, 1, micro_batch=micro_batch, aug_repeats=aug_repeats)
    return Loader(source, {"number": Number()}, order, seed=1, workers=workers, **options)


def flat(batches):
    return [
        (
            b.step,
            b.micro,
            b.ids,
            b.rows,
            b.bad,
            b.labels.tolist(),
            b.raw["number"]["x"].tolist(),
            b.raw["number"]["noise"].tolist(),
        )
        for b in batches
    ]


def test_the_number_of_workers_changes_nothing():
    trouble = {3: fail(OSError("broken")), 17: fail(ValueError("bent"))}
    alone = flat(loader(Numbers(trouble=trouble)).batches(0, 8))
    assert len(alone) == 16 and sum(len(one[4]) for one in alone) >= 2
    for workers in (1, 2):
        assert flat(loader(Numbers(trouble=trouble), workers).batches(0, 8)) == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_a_start_in_the_middle_continues(workers):
    whole = flat(loader().batches(0, 9))
    assert flat(loader(workers=workers).batches(4, 9)) == whole[8:]


def test_steps_group_the_micro_batches():
    steps = list(loader().steps(2, 5))
    assert [step for step, _ in steps] == [2, 3, 4]
    assert [[b.micro for b in batches] for _, batches in steps] == [[0, 1]] * 3


def test_repeats_read_once_and_load_with_other_draws():
    source = Numbers()
    (batch,) = loader(source, micro_batch=8, aug_repeats=4).batches(0, 1)
    assert source.reads == 2
    assert batch.ids[0] == batch.ids[3] != batch.ids[4]
    noise = batch.raw["number"]["noise"]
    assert torch.equal(batch.raw["number"]["x"][0], batch.raw["number"]["x"][3])
    assert not torch.equal(noise[0], noise[1])


def test_without_augmentation_load_gets_no_draw():
    (batch,) = loader(micro_batch=8, augment=False).batches(0, 1)
    assert not batch.raw["number"]["noise"].any()


def test_labels():
    (batch,) = loader(micro_batch=8).batches(0, 1)
    assert batch.labels.tolist() == [int(name.split("/")[1]) % 2 for name in batch.ids]
    (batch,) = loader(Numbers(labels=False), micro_batch=8).batches(0, 1)
    assert batch.labels is None


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_move_as_a_whole(workers):
    (batch,) = loader(workers=workers, micro_batch=8).batches(0, 1)
    moved = batch.to("meta")
    assert moved.raw["number"]["x"].is_meta and moved.raw["number"]["noise"].is_meta and moved.labels.is_meta
    assert moved.ids == batch.ids


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_stream_is_left_alone(workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(workers=workers).batches(0, 2))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_pinned_where_there_is_cuda(workers):
    plain = flat(loader(workers=workers, pin=False).batches(0, 3))
    batches = list(loader(workers=workers).batches(0, 3))
    assert all(b.raw["number"]["x"].is_pinned() and b.labels.is_pinned() for b in batches)
    moved = [b.to("cuda") for b in batches]
    assert moved[0].raw["number"]["x"].is_cuda and flat(moved) == plain


# ------------------------------------------------------------------------------------------------ bad samples
def test_a_bad_sample_is_named_and_replaced_by_the_same_one_each_time():
    bad = {5: fail(OSError("cannot\n be   read"))}
    batches = list(loader(Numbers(trouble=bad)).batches(0, 10))  # two epochs
    met = [(b, one) for b in batches for one in b.bad]
    assert [one for _, one in met] == [BadSample(5, "numbers/5", "OSError: cannot be read")] * 2
    clean = list(loader().batches(0, 10))
    substitutes = set()
    for b, _ in met:
        (other,) = [one for one in clean if (one.step, one.micro) == (b.step, b.micro)]
        place = other.ids.index("numbers/5")
        substitutes.add(b.ids[place])
        assert b.ids[:place] + b.ids[place + 1 :] == other.ids[:place] + other.ids[place + 1 :]
    assert len(substitutes) == 1 and substitutes != {"numbers/5"}


def test_bad_samples_can_be_left_out():
    source = Numbers(10, {5: fail(OSError("broken")), 8: fail(OSError("x")), 9: fail(OSError("x"))})
    batches = list(
        Loader(source, {"number": Number()}, SequentialBatches(10, 4), seed=0, substitute=False, augment=False).batches(
            0, 3
        )
    )
    assert [b.rows for b in batches] == [[0, 1, 2, 3], [4, 6, 7], []]
    assert batches[2].raw == {} and len(batches[2].bad) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_samples_is_an_error(workers):
    source = Numbers(trouble={i: fail(ValueError("holed")) for i in range(40)})
    with pytest.raises(MaemmError, match=r"^21 samples .* unreadable, from numbers/\d+ \(ValueError: holed\)"):
        next(loader(source, workers).batches(0, 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_lack_of_memory_is_no_bad_sample(workers):
    source = Numbers(trouble={i: fail(MemoryError()) for i in range(40)})
    with pytest.raises(MaemmError, match=r"out of memory while reading numbers/\d+; use fewer data.workers"):
        next(loader(source, workers).batches(0, 1))


def test_an_interrupt_is_no_bad_sample():
    with pytest.raises(KeyboardInterrupt):
        next(loader(Numbers(trouble={i: fail(KeyboardInterrupt()) for i in range(40)})).batches(0, 1))


def test_a_modality_that_the_sample_lacks_is_named():
    source = Numbers()
    one = Loader(source, {"figure": Number()}, ShuffledBatches(40, 8, 1), seed=1)
    with pytest.raises(MaemmError, match="no 'figure', only 'number'"):
        next(one.batches(0, 1))


def test_samples_that_make_no_batch():
    class Ragged(Number):
        def load(self, raw, rng):
            return {"x": torch.zeros(raw[0] + 1)}

    with pytest.raises(MaemmError, match="do not make a batch"):
        next(Loader(Numbers(), {"number": Ragged()}, ShuffledBatches(40, 8, 1), seed=1).batches(0, 1))


# ------------------------------------------------------------------------------------- workers that die or stick
@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: os._exit(3), "exit status 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: (faulthandler.disable(), os.kill(os.getpid(), signal.SIGSEGV)), "SIGSEGV"),
    ],
)
def test_a_worker_that_dies_names_its_sample(act, says):
    start = time.monotonic()
    with pytest.raises(MaemmError) as error:
        list(loader(Numbers(trouble={11: act}), workers=2, timeout=60).batches(0, 5))
    assert f"a data worker died of {says} while reading numbers/11 (sample 11)" in str(error.value)
    assert "\n" not in str(error.value) and time.monotonic() - start < 20


def test_a_worker_killed_from_outside_raises_only_where_data_are_waited_for():
    batches = loader(workers=1, timeout=60).batches(0, 400)
    next(batches)
    (child,) = torch.multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.3)  # nothing is raised here, where a loop may be writing a checkpoint
    with pytest.raises(MaemmError, match="a data worker died of SIGKILL"):
        list(batches)


def test_a_worker_that_sticks_is_named():
    start = time.monotonic()
    with pytest.raises(MaemmError, match=r"no data for 2 s \(workers are at numbers/11 \(sample 11\)\)"):
        list(loader(Numbers(trouble={11: lambda: time.sleep(600)}), workers=2, timeout=2).batches(0, 5))
    assert time.monotonic() - start < 20
    assert not torch.multiprocessing.active_children()


def test_a_slow_worker_is_waited_for():
    batches = loader(Numbers(8, {2: lambda: time.sleep(2.2)}), workers=1, timeout=30).batches(0, 1)
    assert sum(len(b.rows) for b in batches) == 8


def test_workers_outlive_polite_signals_and_end_with_the_iterator():
    batches = loader(workers=2).batches(0, 100)
    next(batches)
    children = torch.multiprocessing.active_children()
    for child in children:
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
    for _ in range(20):
        next(batches)
    batches.close()
    assert len(children) == 2 and not any(child.is_alive() for child in children)


def _run_until_killed(pipe):
    batches = loader(workers=2).batches(0, 10**6)
    next(batches)
    pipe.send([child.pid for child in torch.multiprocessing.active_children()])
    time.sleep(600)


def test_workers_do_not_outlive_a_killed_main_process():
    context = torch.multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    main = context.Process(target=_run_until_killed, args=(theirs,))
    main.start()
    workers = ours.recv()
    main.kill()
    main.join()
    give_up = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}/cmdline") and _alive(pid) for pid in workers):
        assert time.monotonic() < give_up
        time.sleep(0.1)


def _alive(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"  # nobody may be there to take note of its end


def test_what_cannot_travel_is_an_error():
    class Odd(Number):
        def collate(self, samples):
            return lambda: None

    with pytest.raises(MaemmError, match=r"cannot be sent to the main process .*; try data.workers=0"):
        next(Loader(Numbers(), {"number": Odd()}, ShuffledBatches(40, 8, 1), seed=1, workers=1).batches(0, 1))


def test_a_worker_killed_while_it_writes_is_no_hang():
    """A slow loop, so that workers wait with half a batch in the pipe."""

    class Long(Numbers):
        def name(self, index):
            return f"numbers/{index}" + "x" * 200_000

    batches = loader(Long(), workers=1, timeout=20, prefetch=4).batches(0, 100)
    next(batches)
    time.sleep(0.3)
    (child,) = torch.multiprocessing.active_children()
    child.kill()
    with pytest.raises(MaemmError, match="died of SIGKILL between two samples"):
        list(batches)


def test_more_workers_than_cores_is_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(loader(workers=5).batches(0, 1))) == 2


# ------------------------------------------------------------------------------------------------- the record
def bad(number):
    return BadSample(number, f"f/{number}.x", "OSError: broken")


def test_the_log_takes_each_sample_once_and_survives_a_resume(tmp_path):
    path = tmp_path / "run" / "bad_samples.jsonl"
    log = BadSampleLog(path, 0.5, 10)
    assert log.add([bad(1), bad(2), bad(1)]) == 2 and log.add([bad(2)]) == 0
    with path.open("a") as file:
        file.write('{"index": 9, "id": "f/9')  # the process was killed here
    log = BadSampleLog(path, 0.5, 10)
    assert len(log) == 2
    assert log.add([bad(2), bad(3)]) == 1
    lines = path.read_text().splitlines()
    assert [json.loads(line)["id"] for line in (lines[0], lines[1], lines[3])] == ["f/1.x", "f/2.x", "f/3.x"]
    assert len(BadSampleLog(path, 0.5, 10)) == 3


def test_processes_share_the_log(tmp_path):
    first, second = (BadSampleLog(tmp_path / "bad.jsonl", 0.25, 10) for _ in range(2))
    first.add([bad(1)])
    second.add([bad(1), bad(2)])
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2
    with pytest.raises(MaemmError):
        first.add([bad(3)])


def test_the_share_is_of_the_whole_data_set(tmp_path):
    log = BadSampleLog(tmp_path / "bad.jsonl", 0.05, 100)
    log.add([bad(i) for i in range(5)])  # 5 of the first 5, but 5 % of all
    with pytest.raises(MaemmError) as error:
        log.add([bad(5)])
    listed = tmp_path / "bad.jsonl"
    assert str(error.value) == (
        f"6 of 100 samples are unreadable (6 %, allowed 5 %; list: {listed}); fix the data or set data.max_bad_fraction"
    )
    with pytest.raises(MaemmError):  # a resume does not forgive
        BadSampleLog(listed, 0.05, 100).check()


def test_no_share_allowed_stops_at_the_first(tmp_path):
    log = BadSampleLog(None, 0.0, 1000)
    log.check()
    with pytest.raises(MaemmError, match="1 of 1,000"):
        log.add([bad(0)])


def test_reasons_are_one_printable_line():
    assert reason_of(ValueError("a\n  b\udce9")) == r"ValueError: a b\udce9"
    assert reason_of(KeyError()) == "KeyError"
    assert len(reason_of(ValueError("x" * 1000))) == 200
