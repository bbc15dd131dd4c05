"""What a prediction needs to know of a device: shipped profiles, or a measurement."""

from toma_fx.devices.find import find_profile
from toma_fx.devices.measure import measure_device
from toma_fx.devices.profile import PROFILES, DeviceProfile, Rates

__all__ = ["PROFILES", "DeviceProfile", "Rates", "find_profile", "measure_device"]
