"""What is typed wrongly ends in one sentence and a status that is not 0."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lightning_edge.app.cli import COMMANDS, main


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "lightning-edge: there is no command 'trian'; did you mean train?"),
        (
            ["train", "model=byte_gtp"],
            "lightning-edge train: model=byte_gtp: there is no model 'byte_gtp';"
            " did you mean model=byte_gpt?",
        ),
        (
            ["train", "trainer.max_epoch=3"],
            "lightning-edge train: trainer.max_epoch is no key here; did you mean"
            " trainer.max_epochs? (a new key is set by +trainer.max_epoch=...)",
        ),
        (
            ["train", "modle=byte_gpt"],
            "lightning-edge train: modle is no key here; did you mean model?",
        ),
        (
            ["train", "cluster.devices=none"],
            "lightning-edge train: cluster.devices=none is not a number of devices from 1 up",
        ),
        (
            ["train", "groups.orins.parallelism=data"],
            "lightning-edge train: groups.orins.parallelism is no key here; ",
        ),
        (
            ["train", "cluster=static", "data=text_files"],
            "lightning-edge train: cluster.host, data.folder must be set: add cluster.host=..."
            " data.folder=...",
        ),
        (
            ["train", "cluster=lan", "cluster.port=http"],
            "lightning-edge train: cluster.port=http is not a port from 1 up",
        ),
        (
            ["train", "cluster=lan", "cluster.wait_s=long"],
            "lightning-edge train: cluster.wait_s=long is not a number of seconds above 0",
        ),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_an_override_that_cannot_be_read_is_quoted(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "model.width={"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "model.width={" in said


def test_configurations_are_shown_and_nothing_is_made(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--cfg", "job", "groups=two_orins_and_a_laptop", "objective=energy"]) == 0
    shown = capsys.readouterr().out
    assert "orin-a" in shown
    assert "minimize: energy" in shown
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_commands_that_need_no_torch_start_without_it():
    code = (
        "import sys; sys.orig_argv[1:] = ['lightning-edge']; from lightning_edge.app.cli import"
        " main; main(['--help']); main(['train', '--cfg', 'job']);"
        " sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
