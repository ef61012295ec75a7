"""W&B decides quickly whether it is online, and stays offline where it cannot be."""

import socket
import time

import pytest
import torch
import wandb

from finetune.reporting import wandb_backend


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """A user whom W&B does not know."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    yield
    wandb.teardown()


def test_without_a_key_it_is_offline_at_once(no_key):
    began = time.perf_counter()
    assert wandb_backend.choose_mode() == ("offline", "no API key: `wandb login` stores one")
    assert time.perf_counter() - began < 15


def test_with_a_key_and_no_network_it_is_offline_at_once_too(no_key, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")  # nothing listens there
    wandb.teardown()
    began = time.perf_counter()
    assert wandb_backend.choose_mode() == ("offline", "localhost cannot be reached")
    assert time.perf_counter() - began < 15


def test_a_name_server_that_never_answers_does_not_hold_up_the_run(monkeypatch):
    def hang(*_: object, **__: object) -> None:
        time.sleep(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", hang)
    began = time.perf_counter()
    assert not wandb_backend._is_reachable("example.invalid", 443)
    assert time.perf_counter() - began < 15


def test_wandb_mode_of_the_environment_is_kept(monkeypatch):
    for value, expected in (("offline", "offline"), ("disabled", "disabled")):
        monkeypatch.setenv("WANDB_MODE", value)
        assert wandb_backend.choose_mode()[0] == expected


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_number_of_channels_are_logged_as_rgb(channels):
    image = torch.arange(channels * 4, dtype=torch.uint8).reshape(channels, 2, 2)
    pixels = wandb_backend._pixels(image)
    assert pixels.shape == (2, 2, 3)
    shown = [0, 1, 2] if channels >= 3 else [0, 0, 0]
    assert pixels.transpose(2, 0, 1).tolist() == image[shown].tolist()
    assert (wandb_backend._pixels(image / 255) == pixels).all()
