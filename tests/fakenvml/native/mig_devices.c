/* MIG mode, and MIG devices: compute instances as devices. */
#include <stdio.h>
#include <string.h>

#include "call.h"

API nvmlReturn_t nvmlDeviceGetMigMode(nvmlHandle_t device, unsigned *current, unsigned *pending) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(__func__, device, current && pending ? current : NULL, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    const char *mode = gpu_text(gpu, "mig");
    if (!mode || strcmp(mode, "unsupported") == 0)
        return call_end(NVML_NOT_SUPPORTED);
    *current = gpu_flag(gpu, "mig");
    *pending = gpu_flag(gpu, "mig-pending");
    return call_end(NVML_SUCCESS);
}

static nvmlReturn_t set_mode(Edit *edit, const Gpu *gpu, const char *key, unsigned mode) {
    char line[48];
    snprintf(line, sizeof line, "gpu %u %s", gpu->index, key);
    edit_remove(edit, line);
    return edit_append(edit, "%s %s", line, mode ? "on" : "off");
}

/* The mode is pending in any case; `activation` says why it is not in force at once. */
static nvmlReturn_t switch_mode(Edit *edit, nvmlHandle_t device, unsigned mode, nvmlReturn_t *activation) {
    Target target;
    nvmlReturn_t status = handle_target(edit->machine, device, 1 << GPU, &target);
    if (status != NVML_SUCCESS)
        return status;
    const Gpu *gpu = target.gpu;
    *activation = NVML_SUCCESS;
    if (mode != gpu_flag(gpu, "mig")) {
        if (gpu->processes || gpu->instances)
            *activation = NVML_IN_USE;
        else if (gpu_flag(gpu, "mig-reset"))
            *activation = NVML_RESET_REQUIRED;
        else
            status = set_mode(edit, gpu, "mig", mode);
    }
    return status == NVML_SUCCESS ? set_mode(edit, gpu, "mig-pending", mode) : status;
}

API nvmlReturn_t nvmlDeviceSetMigMode(nvmlHandle_t device, unsigned mode, nvmlReturn_t *activation) {
    const Gpu *gpu;
    Edit edit;
    nvmlReturn_t status = call_gpu(__func__, device, mode <= 1 ? activation : NULL, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    const char *supported = gpu_text(gpu, "mig");
    if (!supported || strcmp(supported, "unsupported") == 0)
        return call_end(NVML_NOT_SUPPORTED);
    status = write_begin(&edit);
    if (status == NVML_SUCCESS)
        status = switch_mode(&edit, device, mode, activation);
    return call_end(write_end(&edit, status));
}

API nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlHandle_t device, unsigned *count) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(__func__, device, count, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    *count = 0;
    for (unsigned i = 0; i < gpu->profiles; i++)
        if (gpu->profile[i].compute > *count)
            *count = gpu->profile[i].compute;
    return call_end(NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlHandle_t device, unsigned index, nvmlHandle_t *out) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(__func__, device, out, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    if (!gpu_flag(gpu, "mig"))
        return call_end(NVML_NOT_SUPPORTED);
    for (unsigned i = 0; i < gpu->instances; i++) {
        const Instance *instance = &gpu->instance[i];
        if (index < instance->computes) {
            *out = handle_of(MIG_DEVICE, gpu, instance, &instance->compute[index]);
            return call_end(NVML_SUCCESS);
        }
        index -= instance->computes;
    }
    return call_end(NVML_NOT_FOUND);
}

API nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlHandle_t device, unsigned *is) {
    Target target;
    nvmlReturn_t status = call_device(__func__, device, is, &target);
    if (status == NVML_SUCCESS)
        *is = target.compute != NULL;
    return call_end(status);
}

/* A call about a MIG device, which a GPU is not. */
static nvmlReturn_t call_mig(const char *function, nvmlHandle_t device, const void *out, Target *target) {
    nvmlReturn_t status = call_device(function, device, out, target);
    return status == NVML_SUCCESS && !target->compute ? NVML_NOT_SUPPORTED : status;
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlHandle_t device, unsigned *id) {
    Target target;
    nvmlReturn_t status = call_mig(__func__, device, id, &target);
    if (status == NVML_SUCCESS)
        *id = target.instance->id;
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlHandle_t device, unsigned *id) {
    Target target;
    nvmlReturn_t status = call_mig(__func__, device, id, &target);
    if (status == NVML_SUCCESS)
        *id = target.compute->id;
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlHandle_t device, nvmlHandle_t *out) {
    Target target;
    nvmlReturn_t status = call_mig(__func__, device, out, &target);
    if (status == NVML_SUCCESS)
        *out = handle_of(GPU, target.gpu, NULL, NULL);
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlHandle_t device, nvmlAttributes *out) {
    Target target;
    nvmlReturn_t status = call_mig(__func__, device, out, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    const Profile *p = target.instance->profile;
    unsigned slices = target.compute->slices;
    *out = (nvmlAttributes){
        .multiprocessors = p->multiprocessors * slices / p->compute,
        .copy = p->copy,
        .decoder = p->decoder,
        .encoder = p->encoder,
        .jpeg = p->jpeg,
        .ofa = p->ofa,
        .gpu_slices = p->compute,
        .compute_slices = slices,
        .memory_mib = p->memory_mib,
    };
    return call_end(NVML_SUCCESS);
}
