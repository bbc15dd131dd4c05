"""Which profile a prediction takes: the one that was named, a measurement, or the device's own."""

from __future__ import annotations

import torch

from toma_fx.config import closest
from toma_fx.devices.measure import cached, measure_device
from toma_fx.devices.profile import MARKS, PROFILES, DeviceProfile
from toma_fx.errors import ConfigError


def find_profile(name: str | None, device: torch.device) -> DeviceProfile:
    """The profile by name, or of a device.

    Args:
        name: a key of `PROFILES`; `"measure"` measures the device, once a machine; None takes
            the cached measurement, else the profile of the device's name.
        device: of the model. `meta` stands for the machine at hand.

    Raises:
        ConfigError: no such profile; the message names those that are.
    """
    if name is not None and name != "measure":
        key = name.lower().replace(" ", "").replace("-", "")
        if key not in PROFILES:
            names = ", ".join(PROFILES)
            raise ConfigError(
                f"no device profile {name!r}{closest(key, PROFILES)} (known: {names})"
            )
        return PROFILES[key]
    if device.type == "meta":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "measure":
        return measure_device(device)
    known = cached(device)
    if known is not None:
        return known
    if device.type != "cuda":
        return PROFILES["cpu"]
    full = torch.cuda.get_device_name(device)
    for key, marks in MARKS.items():
        if any(mark in full for mark in marks):
            return PROFILES[key]
    return measure_device(device)
