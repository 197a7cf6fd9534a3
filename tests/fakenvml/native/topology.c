/* How GPUs reach each other, NVLink fabric, and the compute mode. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"

/* A call about two GPUs; `first` and `second` are the lower and the higher index. */
static nvmlReturn_t call_pair(const char *function, nvmlHandle_t one, nvmlHandle_t other, const void *out,
                              const Machine **machine, const Gpu **first, const Gpu **second) {
    Target a, b;
    nvmlReturn_t status = call_device(function, one, out, &a);
    if (status == NVML_SUCCESS)
        status = handle_target(a.machine, other, 1 << GPU, &b);
    if (status == NVML_SUCCESS && a.instance)
        status = NVML_NOT_SUPPORTED;
    if (status != NVML_SUCCESS)
        return status;
    bool swapped = a.gpu->index > b.gpu->index;
    *machine = a.machine;
    *first = swapped ? b.gpu : a.gpu;
    *second = swapped ? a.gpu : b.gpu;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlHandle_t one, nvmlHandle_t other, unsigned *level) {
    const Machine *machine;
    const Gpu *first, *second;
    nvmlReturn_t status = call_pair(__func__, one, other, level, &machine, &first, &second);
    if (status != NVML_SUCCESS)
        return call_end(status);
    if (first == second)
        return call_end(NVML_INVALID_ARGUMENT);
    const char *text = machine_text(machine, "level");
    *level = text ? (unsigned)strtoul(text, NULL, 0) : 50;
    for (const Fact *f = fact_first(machine->fact, machine->facts, "link"); f;
         f = fact_next(machine->fact, machine->facts, f)) {
        unsigned a, b, given;
        if (sscanf(f->value, "%u %u %u", &a, &b, &given) == 3 && a == first->index && b == second->index)
            *level = given;
    }
    return call_end(NVML_SUCCESS);
}

/* The PCI bus id at the other end of an NVLink: empty for one that is down, NULL without such a link. */
static const char *link_end(const Gpu *gpu, unsigned link) {
    for (const Fact *f = fact_first(gpu->fact, gpu->facts, "nvlink"); f; f = fact_next(gpu->fact, gpu->facts, f)) {
        char *rest;
        if (strtoul(f->value, &rest, 10) == link) {
            rest += strspn(rest, " \t");
            return strcmp(rest, "-") == 0 ? "" : rest;
        }
    }
    return NULL;
}

static nvmlReturn_t call_link(const char *function, nvmlHandle_t device, unsigned link, const void *out,
                              Target *target, const char **end) {
    nvmlReturn_t status = call_device(function, device, out, target);
    if (status != NVML_SUCCESS)
        return status;
    *end = target->instance ? NULL : link_end(target->gpu, link);
    return *end ? NVML_SUCCESS : NVML_NOT_SUPPORTED;
}

API nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlHandle_t device, unsigned link, unsigned *active) {
    Target target;
    const char *end;
    nvmlReturn_t status = call_link(__func__, device, link, active, &target, &end);
    if (status == NVML_SUCCESS)
        *active = *end != '\0';
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlHandle_t device, unsigned link, nvmlPciInfo *pci) {
    Target target;
    const char *end;
    nvmlReturn_t status = call_link(__func__, device, link, pci, &target, &end);
    if (status == NVML_SUCCESS && !pci_parse(end, pci))
        status = NVML_NOT_SUPPORTED;
    return call_end(status);
}

/* 0 for a GPU of this machine, 2 for a switch. */
API nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlHandle_t device, unsigned link, unsigned *type) {
    Target target;
    const char *end;
    nvmlPciInfo pci;
    nvmlReturn_t status = call_link(__func__, device, link, type, &target, &end);
    if (status == NVML_SUCCESS && !pci_parse(end, &pci))
        status = NVML_NOT_SUPPORTED;
    if (status == NVML_SUCCESS)
        *type = gpu_at(target.machine, &pci) ? 0 : 2;
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlHandle_t device, unsigned link, unsigned *version) {
    Target target;
    const char *end;
    unsigned long long number;
    nvmlReturn_t status = call_link(__func__, device, link, version, &target, &end);
    if (status == NVML_SUCCESS && !gpu_number(target.gpu, "nvlink-version", &number))
        status = NVML_NOT_SUPPORTED;
    if (status == NVML_SUCCESS)
        *version = (unsigned)number;
    return call_end(status);
}

/* Whether an NVLink of a GPU ends at the other one, or links of both at switches. */
static bool linked(const Machine *machine, const Gpu *one, const Gpu *other) {
    bool switches[2] = {false, false};
    const Gpu *pair[2] = {one, other};
    for (unsigned side = 0; side < 2; side++)
        for (const Fact *f = fact_first(pair[side]->fact, pair[side]->facts, "nvlink"); f;
             f = fact_next(pair[side]->fact, pair[side]->facts, f)) {
            nvmlPciInfo pci;
            const char *end = strpbrk(f->value, " \t");
            if (!end || !pci_parse(end, &pci))
                continue;
            const Gpu *there = gpu_at(machine, &pci);
            if (there == pair[1 - side])
                return true;
            switches[side] = switches[side] || !there;
        }
    return switches[0] && switches[1];
}

API nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlHandle_t one, nvmlHandle_t other, unsigned capability, unsigned *out) {
    enum { OK = 0, GPU_NOT_SUPPORTED = 2, NOT_SUPPORTED = 5, NVLINK = 2, CAPABILITIES = 5 };
    const Machine *machine;
    const Gpu *first, *second;
    nvmlReturn_t status = call_pair(__func__, one, other, capability < CAPABILITIES ? out : NULL, &machine, &first,
                                    &second);
    if (status != NVML_SUCCESS)
        return call_end(status);
    if (gpu_flag(first, "mig") || gpu_flag(second, "mig"))
        *out = GPU_NOT_SUPPORTED;
    else
        *out = capability == NVLINK && !linked(machine, first, second) ? NOT_SUPPORTED : OK;
    for (const Fact *f = fact_first(machine->fact, machine->facts, "p2p"); f;
         f = fact_next(machine->fact, machine->facts, f)) {
        unsigned a, b, index, given;
        if (sscanf(f->value, "%u %u %u %u", &a, &b, &index, &given) == 4 && index == capability &&
            a == first->index && b == second->index)
            *out = given;
    }
    return call_end(NVML_SUCCESS);
}

/* A uuid's 16 bytes from its text, whose dashes may be anywhere. */
static bool cluster_parse(const char *text, unsigned char *bytes) {
    unsigned nibbles = 0;
    memset(bytes, 0, 16);
    for (; *text && nibbles < 32; text++) {
        const char *digits = "0123456789abcdef", *digit = strchr(digits, *text | 0x20);
        if (*text == '-')
            continue;
        if (!digit)
            return false;
        bytes[nibbles / 2] |= (unsigned char)((digit - digits) << (nibbles % 2 ? 0 : 4));
        nibbles++;
    }
    return nibbles == 32;
}

static nvmlReturn_t read_fabric(const char *function, nvmlHandle_t device, const void *out, nvmlFabric_v3 *fabric) {
    char cluster[64];
    unsigned mask = 0, summary = 0;
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(function, device, out, &gpu);
    if (status != NVML_SUCCESS)
        return status;
    const char *text = gpu_text(gpu, "fabric");
    *fabric = (nvmlFabric_v3){0};
    if (!text || sscanf(text, "%63s %u %u %u %u %u", cluster, &fabric->clique, &fabric->state, &fabric->status, &mask,
                        &summary) < 4)
        return NVML_NOT_SUPPORTED;
    fabric->health_mask = mask;
    fabric->health_summary = (uint8_t)summary;
    return cluster_parse(cluster, fabric->cluster) ? NVML_SUCCESS : NVML_NOT_SUPPORTED;
}

API nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlHandle_t device, nvmlFabric *out) {
    nvmlFabric_v3 fabric;
    nvmlReturn_t status = read_fabric(__func__, device, out, &fabric);
    if (status == NVML_SUCCESS) {
        memcpy(out->cluster, fabric.cluster, sizeof out->cluster);
        out->status = fabric.status;
        out->clique = fabric.clique;
        out->state = fabric.state;
    }
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlHandle_t device, nvmlFabric_v3 *out) {
    nvmlFabric_v3 fabric;
    nvmlReturn_t status = read_fabric(__func__, device, out, &fabric);
    if (status != NVML_SUCCESS)
        return call_end(status);
    fabric.version = out->version;
    if (fabric.version == NVML_VERSION(nvmlFabric_v3, 3))
        *out = fabric;
    else if (fabric.version == NVML_VERSION(nvmlFabric_v2, 2))
        memcpy(out, &fabric, sizeof(nvmlFabric_v2));
    else
        return call_end(NVML_ARGUMENT_VERSION_MISMATCH);
    return call_end(NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetComputeMode(nvmlHandle_t device, unsigned *mode) {
    const Gpu *gpu;
    unsigned long long number = 0;
    nvmlReturn_t status = call_gpu(__func__, device, mode, &gpu);
    if (status == NVML_SUCCESS) {
        gpu_number(gpu, "compute-mode", &number);
        *mode = (unsigned)number;
    }
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceSetComputeMode(nvmlHandle_t device, unsigned mode) {
    enum { EXCLUSIVE_PROCESS = 3 };
    const Gpu *gpu;
    Edit edit;
    char line[48];
    nvmlReturn_t status = call_gpu(__func__, device, &mode, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    if (mode > EXCLUSIVE_PROCESS)
        return call_end(NVML_INVALID_ARGUMENT);
    if (gpu_flag(gpu, "mig"))
        return call_end(NVML_NOT_SUPPORTED);
    snprintf(line, sizeof line, "gpu %u compute-mode", gpu->index);
    status = write_begin(&edit);
    if (status == NVML_SUCCESS) {
        edit_remove(&edit, line);
        status = edit_append(&edit, "%s %u", line, mode);
    }
    return call_end(write_end(&edit, status));
}
