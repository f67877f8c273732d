"""Saved runs: on both legs with every bit, one flipped byte refused, and nothing lost when something goes wrong."""

import random

import pytest
import torch

import loschmidt as lo
from loschmidt.files import write_json
from reference.bits import differences
from reference.networks import OPTIMIZERS, Network, bits, clip, dataset, loss, run, warm_up


def load(path, **other):
    given = {"model": Network(seed=5), "loss": loss, "data": lo.data.Schedule(dataset(), batch_size=7, seed=1)}
    return lo.Trajectory.load(path, **{**given, "lr": warm_up, "after_backward": clip, **other})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_saved_on_either_leg_goes_on_with_the_same_bits(name, tmp_path):
    traj = run(name)
    start = bits(traj)
    traj.seek(120).save(tmp_path / "out.safetensors")
    there, digest = bits(traj), traj.digest()
    traj.seek(70).save(tmp_path)  # a folder
    loaded, returning = load(tmp_path / "out.safetensors"), load(tmp_path)
    assert loaded.digest() == digest and differences(bits(loaded), there) == []
    assert returning.digest() == traj.digest() and returning.step == 70
    assert differences(bits(returning.seek(120)), there) == []
    for traj in (loaded, returning):
        assert differences(bits(traj.seek(0)), start) == []
        assert traj.tape.bits == traj.journal.bytes == 0


def test_every_flipped_byte_of_a_saved_run_is_noticed(tmp_path):
    path, damaged = tmp_path / "run.safetensors", tmp_path / "damaged.safetensors"
    run("AdamW").seek(30).save(path)
    whole, dice = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*dice.sample(range(header), 150), *dice.sample(range(header, len(whole)), 150)]
    model = Network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for place in places:
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ dice.randrange(1, 256)]) + whole[place + 1 :])
        with pytest.raises(lo.DamagedFile, match="Remedy"):
            load(damaged, model=model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    load(path)


def test_files_are_complete_or_not_there(tmp_path, monkeypatch):
    traj, path = run("SGD").seek(5), tmp_path / "run.safetensors"
    traj.save(path)
    whole = path.read_bytes()
    monkeypatch.setattr("loschmidt.trajectory.store.save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        traj.seek(10).save(path)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]
    with pytest.raises(lo.NotWritten, match="cannot be written"):
        write_json(path / "below a file" / "x.json", {})


def test_files_that_are_no_runs_are_named(tmp_path):
    traj, path = run("SGD").seek(5), tmp_path / "run.safetensors"
    traj.save(path)
    for name, content in {
        "empty": b"",
        "text": b"hello",
        "truncated": path.read_bytes()[:-1],
        "longer": path.read_bytes() + b"0",
        "huge header": (1 << 62).to_bytes(8, "little"),
    }.items():
        other = tmp_path / name
        other.write_bytes(content)
        with pytest.raises(lo.DamagedFile, match="cannot be read"):
            load(other)
    with pytest.raises(lo.DamagedFile, match="there is no saved run"):
        load(tmp_path / "nowhere")
    with pytest.raises(lo.InvalidSetting, match="model is not that of"):
        load(path, model=torch.nn.Linear(3, 3))
    with pytest.raises(lo.SourceChanged, match="data changed"):
        load(path, data=lo.data.Schedule(dataset(), batch_size=8, seed=1))
