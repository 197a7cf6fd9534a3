/* Readings of a whole GPU. One that its state does not give is NOT_SUPPORTED, as is any of a MIG device. */
#include "call.h"

static nvmlReturn_t take(const Gpu *gpu, const char *key, unsigned *out) {
    unsigned long long value;
    if (!gpu_number(gpu, key, &value))
        return NVML_NOT_SUPPORTED;
    *out = (unsigned)value;
    return NVML_SUCCESS;
}

/* Without a key the argument that chose it was none. */
static nvmlReturn_t reading(const char *function, nvmlHandle_t device, const char *key, unsigned *out) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(function, device, key ? out : NULL, &gpu);
    return call_end(status != NVML_SUCCESS ? status : take(gpu, key, out));
}

/* The key of an argument that counts from 0, or NULL. */
static const char *choose(const char *const *keys, unsigned count, unsigned argument) {
    return argument < count ? keys[argument] : NULL;
}

#define CHOOSE(keys, argument) choose(keys, sizeof keys / sizeof *keys, argument)

/* The utilisation of a whole GPU, which NVML does not know while MIG is on. */
static nvmlReturn_t utilization(const char *function, nvmlHandle_t device, const char *key, unsigned *out,
                                unsigned *period_us) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(function, device, out, &gpu);
    if (status == NVML_SUCCESS)
        status = gpu_flag(gpu, "mig") ? NVML_NOT_SUPPORTED : take(gpu, key, out);
    if (status == NVML_SUCCESS && period_us)
        *period_us = 167000;
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlHandle_t device, nvmlUtilization *out) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(__func__, device, out, &gpu);
    if (status == NVML_SUCCESS)
        status = gpu_flag(gpu, "mig") ? NVML_NOT_SUPPORTED : take(gpu, "util-gpu", &out->gpu);
    if (status == NVML_SUCCESS)
        status = take(gpu, "util-memory", &out->memory);
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlHandle_t device, unsigned *out, unsigned *period_us) {
    return utilization(__func__, device, "util-encoder", out, period_us);
}

API nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlHandle_t device, unsigned *out, unsigned *period_us) {
    return utilization(__func__, device, "util-decoder", out, period_us);
}

API nvmlReturn_t nvmlDeviceGetJpgUtilization(nvmlHandle_t device, unsigned *out, unsigned *period_us) {
    return utilization(__func__, device, "util-jpeg", out, period_us);
}

API nvmlReturn_t nvmlDeviceGetOfaUtilization(nvmlHandle_t device, unsigned *out, unsigned *period_us) {
    return utilization(__func__, device, "util-ofa", out, period_us);
}

API nvmlReturn_t nvmlDeviceGetTemperature(nvmlHandle_t device, unsigned sensor, unsigned *out) {
    static const char *const KEYS[] = {"temperature"};
    return reading(__func__, device, CHOOSE(KEYS, sensor), out);
}

API nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlHandle_t device, unsigned threshold, unsigned *out) {
    static const char *const KEYS[] = {"threshold-shutdown", "threshold-slowdown", "threshold-memory", "threshold-gpu"};
    return reading(__func__, device, CHOOSE(KEYS, threshold), out);
}

API nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlHandle_t device, unsigned *milliwatts) {
    const Gpu *gpu;
    Meter meter;
    nvmlReturn_t status = call_gpu(__func__, device, milliwatts, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    if (!gpu_meter(gpu, "power", &meter))
        return call_end(NVML_NOT_SUPPORTED);
    *milliwatts = (unsigned)(meter.rate + 0.5);
    return call_end(NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlHandle_t device, unsigned long long *millijoules) {
    Target target;
    Meter meter;
    nvmlReturn_t status = call_device(__func__, device, millijoules, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    if (target.instance || !gpu_meter(target.gpu, "power", &meter))
        return call_end(NVML_NOT_SUPPORTED);
    *millijoules = (unsigned long long)(meter_total(target.machine, &meter) + 0.5);
    return call_end(NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlHandle_t device, unsigned *milliwatts) {
    return reading(__func__, device, "power-limit", milliwatts);
}

API nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlHandle_t device, unsigned *milliwatts) {
    return reading(__func__, device, "power-limit", milliwatts);
}

API nvmlReturn_t nvmlDeviceGetClockInfo(nvmlHandle_t device, unsigned clock, unsigned *mhz) {
    static const char *const KEYS[] = {"clock-graphics", "clock-sm", "clock-memory", "clock-video"};
    return reading(__func__, device, CHOOSE(KEYS, clock), mhz);
}

API nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlHandle_t device, unsigned clock, unsigned *mhz) {
    static const char *const KEYS[] = {"clock-max-graphics", "clock-max-sm", "clock-max-memory", "clock-max-video"};
    return reading(__func__, device, CHOOSE(KEYS, clock), mhz);
}

static nvmlReturn_t clock_reasons(const char *function, nvmlHandle_t device, unsigned long long *out) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(function, device, out, &gpu);
    if (status == NVML_SUCCESS && !gpu_number(gpu, "clock-event-reasons", out))
        status = NVML_NOT_SUPPORTED;
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlHandle_t device, unsigned long long *out) {
    return clock_reasons(__func__, device, out);
}

API nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlHandle_t device, unsigned long long *out) {
    return clock_reasons(__func__, device, out);
}

API nvmlReturn_t nvmlDeviceGetPcieReplayCounter(nvmlHandle_t device, unsigned *out) {
    return reading(__func__, device, "pcie-replays", out);
}

API nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlHandle_t device, unsigned counter, unsigned *kilobytes) {
    static const char *const KEYS[] = {"pcie-tx", "pcie-rx"};
    return reading(__func__, device, CHOOSE(KEYS, counter), kilobytes);
}

API nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlHandle_t device, unsigned *out) {
    return reading(__func__, device, "pcie-generation", out);
}

API nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlHandle_t device, unsigned *out) {
    return reading(__func__, device, "pcie-width", out);
}

API nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlHandle_t device, unsigned *out) {
    return reading(__func__, device, "pcie-max-generation", out);
}

API nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlHandle_t device, unsigned *out) {
    return reading(__func__, device, "pcie-max-width", out);
}

API nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlHandle_t device, unsigned policy, nvmlViolationTime *out) {
    Target target;
    nvmlReturn_t status = call_device(__func__, device, out, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    unsigned long long held;
    if (target.instance || !gpu_violation(target.gpu, policy, &held))
        return call_end(NVML_NOT_SUPPORTED);
    *out = (nvmlViolationTime){(unsigned long long)(machine_now(target.machine) * 1e9), held};
    return call_end(NVML_SUCCESS);
}
