/* Memory and the processes that use it, of GPUs and of MIG devices. */
#include <string.h>

#include "call.h"

static bool inside(const Process *process, const Instance *instance) {
    return !instance || process->instance == instance->id;
}

/* Megabytes in use by the processes of a GPU or GPU instance. */
static unsigned long long held_mib(const Gpu *gpu, const Instance *instance) {
    unsigned long long mib = 0;
    for (unsigned i = 0; i < gpu->processes; i++)
        if (inside(&gpu->process[i], instance) && gpu->process[i].mib != NVML_MEMORY_NOT_AVAILABLE)
            mib += gpu->process[i].mib;
    return mib;
}

static nvmlMemory_v2 memory(const Target *target) {
    unsigned long long total = 0, reserved = 0, used = 0;
    gpu_number(target->gpu, "memory-mib", &total);
    gpu_number(target->gpu, "reserved-mib", &reserved);
    if (target->instance) {
        reserved = total ? reserved * target->instance->profile->memory_mib / total : 0;
        total = target->instance->profile->memory_mib;
    } else {
        gpu_number(target->gpu, "used-mib", &used);
    }
    used += held_mib(target->gpu, target->instance);
    unsigned long long room = total > reserved ? total - reserved : 0;
    used = used < room ? used : room;
    return (nvmlMemory_v2){0, total << 20, reserved << 20, (room - used) << 20, used << 20};
}

API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlHandle_t device, nvmlMemory *out) {
    Target target;
    nvmlReturn_t status = call_device(__func__, device, out, &target);
    if (status == NVML_SUCCESS) {
        nvmlMemory_v2 all = memory(&target);
        *out = (nvmlMemory){all.total, all.free, all.used + all.reserved};
    }
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlHandle_t device, nvmlMemory_v2 *out) {
    Target target;
    nvmlReturn_t status = call_device(__func__, device, out, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    unsigned version = out->version;
    if (version != NVML_VERSION(nvmlMemory_v2, 2))
        return call_end(NVML_ARGUMENT_VERSION_MISMATCH);
    *out = memory(&target);
    out->version = version;
    return call_end(NVML_SUCCESS);
}

static bool belongs(const Process *process, const Target *target, const char *kind) {
    if (strcmp(process->kind, kind) != 0)
        return false;
    return inside(process, target->instance) && (!target->compute || process->compute == target->compute->id);
}

static nvmlReturn_t processes(const char *function, nvmlHandle_t device, const char *kind, unsigned *count,
                              nvmlProcessInfo *out) {
    Target target;
    nvmlReturn_t status = call_device(function, device, count, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    unsigned found = 0, room = *count;
    for (unsigned i = 0; i < target.gpu->processes; i++) {
        const Process *one = &target.gpu->process[i];
        if (!belongs(one, &target, kind))
            continue;
        if (out && found < room) {
            unsigned long long bytes = one->mib == NVML_MEMORY_NOT_AVAILABLE ? one->mib : one->mib << 20;
            out[found] = (nvmlProcessInfo){one->pid, bytes, one->instance, one->compute};
        }
        found++;
    }
    *count = found;
    return call_end(found > (out ? room : 0) ? NVML_INSUFFICIENT_SIZE : NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlHandle_t device, unsigned *count, nvmlProcessInfo *out) {
    return processes(__func__, device, "compute", count, out);
}

API nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlHandle_t device, unsigned *count, nvmlProcessInfo *out) {
    return processes(__func__, device, "graphics", count, out);
}

API nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlHandle_t device, unsigned *count,
                                                            nvmlProcessInfo *out) {
    return processes(__func__, device, "mps", count, out);
}

/* One sample per process, taken now. */
API nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlHandle_t device, nvmlProcessUtilization *out, unsigned *count,
                                                 unsigned long long last_seen_us) {
    const Gpu *gpu;
    Target target;
    nvmlReturn_t status = call_device(__func__, device, count, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    gpu = target.gpu;
    if (target.instance || gpu_flag(gpu, "mig"))
        return call_end(NVML_NOT_SUPPORTED);
    unsigned long long now_us = (unsigned long long)(machine_now(target.machine) * 1e6);
    unsigned room = *count;
    *count = gpu->processes;
    if (gpu->processes == 0 || now_us <= last_seen_us)
        return call_end(NVML_NOT_FOUND);
    if (!out || room < gpu->processes)
        return call_end(NVML_INSUFFICIENT_SIZE);
    for (unsigned i = 0; i < gpu->processes; i++) {
        const Process *one = &gpu->process[i];
        out[i] = (nvmlProcessUtilization){one->pid, now_us, one->sm, one->memory, one->encoder, one->decoder};
    }
    return call_end(NVML_SUCCESS);
}
