/* Memory errors: ECC counters, remapped rows, retired pages. */
#include <stdio.h>
#include <string.h>

#include "call.h"

API nvmlReturn_t nvmlDeviceGetEccMode(nvmlHandle_t device, unsigned *current, unsigned *pending) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(__func__, device, current && pending ? current : NULL, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    const char *mode = gpu_text(gpu, "ecc");
    if (!mode || strcmp(mode, "unsupported") == 0)
        return call_end(NVML_NOT_SUPPORTED);
    *current = gpu_flag(gpu, "ecc");
    *pending = gpu_flag(gpu, "ecc-pending");
    return call_end(NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlHandle_t device, unsigned type, unsigned counter,
                                             unsigned long long *out) {
    static const char *const KEYS[2][2] = {{"ecc-single-volatile", "ecc-single-aggregate"},
                                           {"ecc-double-volatile", "ecc-double-aggregate"}};
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(__func__, device, type < 2 && counter < 2 ? out : NULL, &gpu);
    if (status == NVML_SUCCESS && (!gpu_flag(gpu, "ecc") || !gpu_number(gpu, KEYS[type][counter], out)))
        status = NVML_NOT_SUPPORTED;
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlHandle_t device, unsigned *correctable, unsigned *uncorrectable,
                                           unsigned *pending, unsigned *failed) {
    const Gpu *gpu;
    unsigned long long rows[2];
    bool complete = correctable && uncorrectable && pending && failed;
    nvmlReturn_t status = call_gpu(__func__, device, complete ? correctable : NULL, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    if (!gpu_number(gpu, "remapped-correctable", &rows[0]) || !gpu_number(gpu, "remapped-uncorrectable", &rows[1]))
        return call_end(NVML_NOT_SUPPORTED);
    *correctable = (unsigned)rows[0];
    *uncorrectable = (unsigned)rows[1];
    *pending = gpu_flag(gpu, "remapped-pending");
    *failed = gpu_flag(gpu, "remapped-failure");
    return call_end(NVML_SUCCESS);
}

static nvmlReturn_t retired_pages(const char *function, nvmlHandle_t device, unsigned cause, unsigned *count,
                                  unsigned long long *addresses, unsigned long long *times) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(function, device, count, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    if (!gpu_flag(gpu, "retires"))
        return call_end(NVML_NOT_SUPPORTED);
    unsigned found = 0, room = addresses ? *count : 0;
    for (const Fact *f = fact_first(gpu->fact, gpu->facts, "retired"); f; f = fact_next(gpu->fact, gpu->facts, f)) {
        unsigned own;
        unsigned long long address, time = 0;
        if (sscanf(f->value, "%u %lli %llu", &own, (long long *)&address, &time) < 2 || own != cause)
            continue;
        if (found < room) {
            addresses[found] = address;
            if (times)
                times[found] = time;
        }
        found++;
    }
    *count = found;
    return call_end(found > room ? NVML_INSUFFICIENT_SIZE : NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlHandle_t device, unsigned cause, unsigned *count,
                                           unsigned long long *addresses) {
    return retired_pages(__func__, device, cause, count, addresses, NULL);
}

API nvmlReturn_t nvmlDeviceGetRetiredPages_v2(nvmlHandle_t device, unsigned cause, unsigned *count,
                                              unsigned long long *addresses, unsigned long long *times) {
    return retired_pages(__func__, device, cause, count, addresses, times);
}

API nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlHandle_t device, unsigned *pending) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(__func__, device, pending, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    if (!gpu_text(gpu, "retired-pending"))
        return call_end(NVML_NOT_SUPPORTED);
    *pending = gpu_flag(gpu, "retired-pending");
    return call_end(NVML_SUCCESS);
}
