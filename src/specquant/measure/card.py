"""The state of a GPU while something runs on it: its clock and power."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter

import numpy as np
import torch

SAMPLE_S = 0.01


class CardState:
    """Samples a GPU's clock and power from entering to leaving; on a CPU, or where NVML is missing, there are none."""

    def __init__(self, device: torch.device):
        self._samples: list[tuple[float, float, float]] = []
        self._handle = None
        if device.type == "cuda":
            with suppress(Exception):  # a driver without NVML: times are what counts
                import pynvml

                pynvml.nvmlInit()
                uuid = torch.cuda.get_device_properties(device).uuid
                self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")

    def __enter__(self) -> "CardState":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if self._handle is not None:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        if self._handle is not None:
            self._thread.join()

    def mean(self) -> dict[str, float]:
        """The means of clock_mhz, of the multiprocessors, and power_w, as NVML reads it at once; else NaN."""
        clock_mhz, power_w = np.mean([sample[1:] for sample in self._samples] or [(np.nan, np.nan)], axis=0)
        return {"clock_mhz": clock_mhz, "power_w": power_w}

    def at(self, times: Sequence[float]) -> dict[str, np.ndarray]:
        """The same at some times of `perf_counter`, between samples by a line."""
        if not self._samples:
            return {name: np.full(len(times), np.nan) for name in ("clock_mhz", "power_w")}
        sampled, clocks, powers = zip(*self._samples, strict=True)
        return {"clock_mhz": np.interp(times, sampled, clocks), "power_w": np.interp(times, sampled, powers)}

    def _sample(self) -> None:
        nvml = self._nvml
        while not self._ended.wait(SAMPLE_S):
            with suppress(nvml.NVMLError):
                clock_mhz = nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)
                (field,) = nvml.nvmlDeviceGetFieldValues(self._handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
                self._samples.append((perf_counter(), clock_mhz, field.value.uiVal / 1e3))
