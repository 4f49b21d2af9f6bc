"""Hardware in words and hardware that is here."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pynvml
import pytest

from tunekit.advisor.observe import hardware as observe
from tunekit.advisor.observe.hardware import GIB, devices, hardware
from tunekit.errors import InvalidError, MissingError
from tunekit.workload import Hardware


@pytest.mark.parametrize(
    ("spec", "machines", "count", "name"),
    [
        ("H100", 1, 1, "H100"),
        ("h100", 1, 1, "H100"),
        ("NVIDIA H100", 1, 1, "H100"),
        ("8xH100", 1, 8, "H100"),
        ("4x8xH100", 4, 8, "H100"),
        ("2 x 8 x H200", 2, 8, "H200"),
        ("RTX 4090", 1, 1, "RTX4090"),
        ("geforce rtx 4090", 1, 1, "RTX4090"),
        ("4090", 1, 1, "RTX4090"),
        ("A100 40GB", 1, 1, "A100-40GB"),
        ("a100", 1, 1, "A100-80GB"),
        ("2x24GB", 1, 2, "24GB"),
        ("24 GiB", 1, 1, "24 GiB"),
    ],
)
def test_a_description_is_understood(spec: str, machines: int, count: int, name: str) -> None:
    found = hardware(spec)
    assert (found.num_machines, found.num_devices, found.name, found.device) == (machines, count, name, "cuda")


def test_a_size_is_taken_as_it_stands() -> None:
    assert hardware("24GB").memory_bytes == 24 * GIB
    assert hardware("7.5gb").memory_bytes == int(7.5 * GIB)


def test_the_catalogue_gives_less_memory_than_a_card_is_sold_under_and_says_what_it_can() -> None:
    assert 70 * GIB < hardware("A100-80GB").memory_bytes < 80 * GIB
    assert not hardware("T4").bf16
    assert hardware("8xH100").interconnect == "nvlink"
    assert hardware("H100").interconnect == "none"


@pytest.mark.parametrize("card", sorted(devices()))
def test_every_card_of_the_catalogue_is_complete(card: str) -> None:
    facts = devices()[card]
    assert hardware(card).name == card
    assert facts["source"]
    assert 4 < facts["memory_gib"] < 300
    assert facts["interconnect"] in ("pcie", "nvlink")
    assert ("bfloat16" in str(facts)) == facts["bf16"]


@pytest.mark.parametrize(
    ("spec", "code", "says"),
    [
        ("H300", "hardware-unknown", "H200"),
        ("gpu please", "hardware-unknown", "24GB"),
        ("", "hardware-unknown", "24GB"),
        ("2xcpu", "hardware-unknown", "cpu"),
        ("3x2x8xH100", "hardware-unknown", "24GB"),
        ("-1GB", "hardware-unknown", "24GB"),
        ("0x24GB", "hardware-count", "24GB"),
        ("0GB", "hardware-count", "24GB"),
    ],
)
def test_an_unknown_description_names_a_way_out(spec: str, code: str, says: str) -> None:
    with pytest.raises(InvalidError) as e:
        hardware(spec)
    assert e.value.codes == (code,)
    assert says in str(e.value)


def test_what_is_no_text_is_refused_and_a_hardware_is_taken_as_it_is() -> None:
    with pytest.raises(InvalidError, match="hardware-unknown"):
        hardware(24)  # type: ignore[arg-type]
    mine = Hardware(device="cuda", name="mine", memory_bytes=GIB)
    assert hardware(mine) is mine


def test_the_cpu_has_the_memory_that_is_free_in_steps_of_a_quarter_gib() -> None:
    found = hardware("cpu")
    assert found.device == "cpu"
    assert found.memory_bytes % (GIB // 4) == 0
    assert found.memory_bytes <= psutil.virtual_memory().total
    assert found.host_cores is not None
    assert found.host_cores >= 1


def test_a_containers_limit_bounds_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "_container_memory", lambda: [int(1.6 * GIB)])
    assert hardware("cpu").memory_bytes == int(1.5 * GIB)


class Driver:
    """What NVML answers on a machine with four cards of two generations."""

    cards = tuple(
        SimpleNamespace(uuid=f"GPU-{i}a{i}", free=free * GIB, capability=(major, 0))
        for i, (free, major) in enumerate([(20, 8), (22, 8), (10, 7), (24, 9)])
    )

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: len(self.cards),
            "nvmlDeviceGetHandleByIndex": lambda i: self.cards[i],
            "nvmlDeviceGetUUID": lambda h: h.uuid,
            "nvmlDeviceGetName": lambda h: "Card",
            "nvmlDeviceGetMemoryInfo": lambda h: SimpleNamespace(free=h.free),
            "nvmlDeviceGetCudaComputeCapability": lambda h: h.capability,
            "nvmlDeviceGetNvLinkState": lambda h, link: 1,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, answer)


@pytest.mark.parametrize(
    ("visible", "count", "free", "bf16"),
    [(None, 4, 10, False), ("0,1", 2, 20, True), ("3", 1, 24, True), ("GPU-2a2", 1, 10, False), ("0,9,1", 1, 20, True)],
)
def test_cuda_devices_are_those_that_the_process_may_see(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int, free: int, bf16: bool
) -> None:
    Driver().install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = hardware("auto")
    assert (found.device, found.num_devices, found.memory_bytes, found.bf16) == ("cuda", count, free * GIB, bf16)
    assert found.interconnect == ("nvlink" if count > 1 else "none")


def test_auto_falls_back_to_the_cpu_where_no_device_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver().install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert hardware("auto").device == "cpu"
    with pytest.raises(MissingError, match="hardware-absent"):
        hardware("cuda")
