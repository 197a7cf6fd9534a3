/* Devices: the handles of GPUs and MIG devices, and what does not change of them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"

API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(__func__, count, &machine);
    if (status == NVML_SUCCESS)
        *count = machine->gpus;
    return call_end(status);
}

static nvmlReturn_t give(const Machine *machine, unsigned index, nvmlHandle_t *device) {
    if (index >= machine->gpus || machine->gpu[index].facts == 0)
        return NVML_INVALID_ARGUMENT;
    if (gpu_flag(&machine->gpu[index], "lost"))
        return NVML_GPU_IS_LOST;
    *device = handle_of(GPU, &machine->gpu[index], NULL, NULL);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlHandle_t *device) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(__func__, device, &machine);
    return call_end(status != NVML_SUCCESS ? status : give(machine, index, device));
}

static nvmlReturn_t find_uuid(const Machine *machine, const char *uuid, nvmlHandle_t *device) {
    for (unsigned i = 0; i < machine->gpus; i++) {
        const Gpu *gpu = &machine->gpu[i];
        const char *own = gpu_text(gpu, "uuid");
        if (own && strcmp(own, uuid) == 0)
            return give(machine, i, device);
        for (unsigned j = 0; j < gpu->instances; j++)
            for (unsigned k = 0; k < gpu->instance[j].computes; k++)
                if (strcmp(gpu->instance[j].compute[k].uuid, uuid) == 0) {
                    *device = handle_of(MIG_DEVICE, gpu, &gpu->instance[j], &gpu->instance[j].compute[k]);
                    return gpu_flag(gpu, "lost") ? NVML_GPU_IS_LOST : NVML_SUCCESS;
                }
    }
    return NVML_NOT_FOUND;
}

API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlHandle_t *device) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(__func__, device, &machine);
    if (status == NVML_SUCCESS)
        status = uuid ? find_uuid(machine, uuid, device) : NVML_INVALID_ARGUMENT;
    return call_end(status);
}

static nvmlReturn_t find_bus_id(const Machine *machine, const char *text, nvmlHandle_t *device) {
    nvmlPciInfo wanted;
    if (!pci_parse(text, &wanted))
        return NVML_INVALID_ARGUMENT;
    const Gpu *gpu = gpu_at(machine, &wanted);
    return gpu ? give(machine, gpu->index, device) : NVML_NOT_FOUND;
}

API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlHandle_t *device) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(__func__, device, &machine);
    if (status == NVML_SUCCESS)
        status = bus_id ? find_bus_id(machine, bus_id, device) : NVML_INVALID_ARGUMENT;
    return call_end(status);
}

/* The place of a MIG device among those of its GPU, by the ids of its instances. */
static unsigned mig_index(const Target *target) {
    unsigned place = 0;
    for (unsigned i = 0; &target->gpu->instance[i] < target->instance; i++)
        place += target->gpu->instance[i].computes;
    return place + (unsigned)(target->compute - target->instance->compute);
}

API nvmlReturn_t nvmlDeviceGetIndex(nvmlHandle_t device, unsigned *index) {
    Target target;
    nvmlReturn_t status = call_device(__func__, device, index, &target);
    if (status == NVML_SUCCESS)
        *index = target.compute ? mig_index(&target) : target.gpu->index;
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetUUID(nvmlHandle_t device, char *uuid, unsigned length) {
    Target target;
    nvmlReturn_t status = call_device(__func__, device, uuid, &target);
    if (status == NVML_SUCCESS)
        status = copy_text(target.compute ? target.compute->uuid : gpu_text(target.gpu, "uuid"), uuid, length);
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetName(nvmlHandle_t device, char *name, unsigned length) {
    Target target;
    char whole[160], part[16] = "";
    nvmlReturn_t status = call_device(__func__, device, name, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    const char *own = gpu_text(target.gpu, "name");
    if (!target.instance || !own)
        return call_end(copy_text(own, name, length));
    const Profile *profile = target.instance->profile;
    if (target.compute->slices != profile->compute)
        snprintf(part, sizeof part, "%uc.", target.compute->slices);
    snprintf(whole, sizeof whole, "%s MIG %s%s", own, part, profile->name);
    return call_end(copy_text(whole, name, length));
}

static nvmlReturn_t gpu_word(const char *function, nvmlHandle_t device, const char *key, char *text, unsigned length) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(function, device, text, &gpu);
    return call_end(status != NVML_SUCCESS ? status : copy_text(gpu_text(gpu, key), text, length));
}

static nvmlReturn_t gpu_count(const char *function, nvmlHandle_t device, const char *key, unsigned *number) {
    Target target;
    unsigned long long value;
    nvmlReturn_t status = call_device(function, device, number, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    if (!gpu_number(target.gpu, key, &value))
        return call_end(NVML_NOT_SUPPORTED);
    *number = (unsigned)value;
    return call_end(NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetSerial(nvmlHandle_t device, char *serial, unsigned length) {
    return gpu_word(__func__, device, "serial", serial, length);
}

API nvmlReturn_t nvmlDeviceGetVbiosVersion(nvmlHandle_t device, char *version, unsigned length) {
    return gpu_word(__func__, device, "vbios", version, length);
}

API nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlHandle_t device, unsigned *minor) {
    return gpu_count(__func__, device, "minor", minor);
}

API nvmlReturn_t nvmlDeviceGetArchitecture(nvmlHandle_t device, unsigned *architecture) {
    return gpu_count(__func__, device, "architecture", architecture);
}

API nvmlReturn_t nvmlDeviceGetBrand(nvmlHandle_t device, unsigned *brand) {
    return gpu_count(__func__, device, "brand", brand);
}

API nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlHandle_t device, unsigned *node) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(__func__, device, node, &gpu);
    if (status == NVML_SUCCESS) {
        const char *text = gpu_text(gpu, "numa");
        long number = text ? strtol(text, NULL, 10) : -1;
        *node = (unsigned)number;
        status = number < 0 ? NVML_NOT_SUPPORTED : NVML_SUCCESS;
    }
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlHandle_t device, int *major, int *minor) {
    Target target;
    nvmlReturn_t status = call_device(__func__, device, major && minor ? major : NULL, &target);
    if (status == NVML_SUCCESS) {
        const char *text = gpu_text(target.gpu, "capability");
        status = text && sscanf(text, "%d.%d", major, minor) == 2 ? NVML_SUCCESS : NVML_NOT_SUPPORTED;
    }
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlHandle_t device, nvmlPciInfo *pci) {
    Target target;
    unsigned long long ids = 0, subsystem = 0;
    nvmlReturn_t status = call_device(__func__, device, pci, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    const char *bus_id = gpu_text(target.gpu, "pci-bus-id");
    if (!bus_id || !pci_parse(bus_id, pci))
        return call_end(NVML_NOT_SUPPORTED);
    gpu_number(target.gpu, "pci-device", &ids);
    gpu_number(target.gpu, "pci-subsystem", &subsystem);
    pci->pci_device = (unsigned)ids;
    pci->pci_subsystem = (unsigned)subsystem;
    return call_end(NVML_SUCCESS);
}
