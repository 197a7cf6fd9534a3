/* Compute instances: a run of the compute slices of a GPU instance. The one that fills it is the ordinary case. */
#include <stdio.h>
#include <string.h>

#include "call.h"
#include "partition.h"

/* Profiles are numbered like those of GPU instances, and their ids are their numbers. */
static const struct {
    unsigned slices, starts, start[8];
} PROFILES[] = {
    {1, 7, {0, 1, 2, 3, 4, 5, 6}}, {2, 3, {0, 2, 4}}, {3, 2, {0, 4}}, {4, 1, {0}}, {7, 1, {0}},
};
enum { PROFILE_NUMBERS = 9 };

/* The slices of a profile in a GPU instance, 0 when it has none such: four slices are not cut in three. */
static unsigned slices_of(const Instance *instance, unsigned profile) {
    if (profile >= sizeof PROFILES / sizeof *PROFILES)
        return 0;
    unsigned slices = PROFILES[profile].slices, all = instance->profile->compute;
    return slices > all || (slices == 3 && all == 4) ? 0 : slices;
}

static unsigned places(const Instance *instance, unsigned profile, nvmlPlacement *out) {
    unsigned count = 0, slices = PROFILES[profile].slices;
    for (unsigned i = 0; i < PROFILES[profile].starts; i++) {
        unsigned start = PROFILES[profile].start[i];
        if (start + slices > instance->profile->compute)
            continue;
        if (out)
            out[count] = (nvmlPlacement){start, slices};
        count++;
    }
    return count;
}

static bool is_free(const Instance *instance, const nvmlPlacement *place) {
    for (unsigned i = 0; i < instance->computes; i++) {
        const Compute *one = &instance->compute[i];
        if (place->start < one->start + one->slices && one->start < place->start + place->size)
            return false;
    }
    return true;
}

static nvmlReturn_t call_profile(const char *function, nvmlHandle_t instance, const void *out, unsigned profile,
                                 Target *target) {
    nvmlReturn_t status = call_instance(function, instance, out, target);
    if (status != NVML_SUCCESS)
        return status;
    if (profile >= PROFILE_NUMBERS)
        return NVML_INVALID_ARGUMENT;
    return slices_of(target->instance, profile) ? NVML_SUCCESS : NVML_NOT_SUPPORTED;
}

static nvmlReturn_t describe(const char *function, nvmlHandle_t instance, unsigned profile, unsigned engines,
                             const void *out, nvmlComputeInstanceProfile_v2 *info) {
    Target target;
    nvmlReturn_t status = call_profile(function, instance, engines == 0 ? out : NULL, profile, &target);
    if (status != NVML_SUCCESS)
        return status;
    const Profile *p = target.instance->profile;
    unsigned slices = PROFILES[profile].slices, count = places(target.instance, profile, NULL);
    *info = (nvmlComputeInstanceProfile_v2){0,       profile,    slices,     count,   p->multiprocessors * slices / p->compute,
                                            p->copy, p->decoder, p->encoder, p->jpeg, p->ofa,
                                            ""};
    if (slices == p->compute)
        snprintf(info->name, sizeof info->name, "MIG %s", p->name);
    else
        snprintf(info->name, sizeof info->name, "MIG %uc.%s", slices, p->name);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlHandle_t instance, unsigned profile,
                                                              unsigned engines, nvmlComputeInstanceProfile *out) {
    nvmlComputeInstanceProfile_v2 info;
    nvmlReturn_t status = describe(__func__, instance, profile, engines, out, &info);
    if (status == NVML_SUCCESS)
        *out = (nvmlComputeInstanceProfile){info.id,      info.slices,  info.instances, info.multiprocessors, info.copy,
                                            info.decoder, info.encoder, info.jpeg,      info.ofa};
    return call_end(status);
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(nvmlHandle_t instance, unsigned profile,
                                                               unsigned engines, nvmlComputeInstanceProfile_v2 *out) {
    nvmlComputeInstanceProfile_v2 info;
    nvmlReturn_t status = describe(__func__, instance, profile, engines, out, &info);
    if (status != NVML_SUCCESS)
        return call_end(status);
    info.version = out->version;
    if (info.version != NVML_VERSION(nvmlComputeInstanceProfile_v2, 2))
        return call_end(NVML_ARGUMENT_VERSION_MISMATCH);
    *out = info;
    return call_end(NVML_SUCCESS);
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceRemainingCapacity(nvmlHandle_t instance, unsigned profile,
                                                                    unsigned *count) {
    Target target;
    nvmlPlacement all[8];
    nvmlReturn_t status = call_profile(__func__, instance, count, profile, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    unsigned known = places(target.instance, profile, all), found = 0;
    for (unsigned i = 0; i < known; i++)
        found += is_free(target.instance, &all[i]);
    *count = found;
    return call_end(NVML_SUCCESS);
}

/* Without `out` it only counts. */
API nvmlReturn_t nvmlGpuInstanceGetComputeInstancePossiblePlacements(nvmlHandle_t instance, unsigned profile,
                                                                     nvmlPlacement *out, unsigned *count) {
    Target target;
    nvmlReturn_t status = call_profile(__func__, instance, count, profile, &target);
    if (status == NVML_SUCCESS)
        *count = places(target.instance, profile, out);
    return call_end(status);
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvmlHandle_t instance, unsigned profile, nvmlHandle_t *out,
                                                    unsigned *count) {
    Target target;
    nvmlReturn_t status = call_profile(__func__, instance, out ? count : NULL, profile, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    *count = 0;
    for (unsigned i = 0; i < target.instance->computes; i++)
        if (target.instance->compute[i].slices == PROFILES[profile].slices)
            out[(*count)++] = handle_of(COMPUTE, target.gpu, target.instance, &target.instance->compute[i]);
    return call_end(NVML_SUCCESS);
}

API nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlHandle_t instance, unsigned id, nvmlHandle_t *out) {
    Target target;
    nvmlReturn_t status = call_instance(__func__, instance, out, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    for (unsigned i = 0; i < target.instance->computes; i++)
        if (target.instance->compute[i].id == id) {
            *out = handle_of(COMPUTE, target.gpu, target.instance, &target.instance->compute[i]);
            return call_end(NVML_SUCCESS);
        }
    return call_end(NVML_NOT_FOUND);
}

API nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvmlHandle_t compute, nvmlComputeInstanceInfo *out) {
    Target target;
    nvmlReturn_t status = call_compute(__func__, compute, out, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    const Compute *one = target.compute;
    unsigned profile = 0;
    while (profile + 1 < sizeof PROFILES / sizeof *PROFILES && PROFILES[profile].slices != one->slices)
        profile++;
    *out = (nvmlComputeInstanceInfo){handle_of(GPU, target.gpu, NULL, NULL),
                                     handle_of(INSTANCE, target.gpu, target.instance, NULL),
                                     one->id,
                                     profile,
                                     {one->start, one->slices}};
    return call_end(NVML_SUCCESS);
}

static unsigned free_id(const Instance *instance) {
    unsigned id = 0;
    for (unsigned i = 0; i < instance->computes; i++) /* in the order of their ids */
        id += instance->compute[i].id == id;
    return id;
}

/* A uuid that follows from the GPU, the ids and the birth: FNV-1a, marked as a name-based uuid. */
static void name_compute(const Gpu *gpu, const Instance *instance, Compute *made) {
    char name[160];
    const char *uuid = gpu_text(gpu, "uuid");
    snprintf(name, sizeof name, "%s/%u/%u/%u", uuid ? uuid : "", instance->id, made->id, made->birth);
    uint64_t half[2] = {0xcbf29ce484222325u, 0x84222325cbf29ce4u};
    for (unsigned i = 0; i < 2; i++)
        for (const char *at = name; *at; at++)
            half[i] = (half[i] ^ (unsigned char)*at) * 0x100000001b3u;
    unsigned long long a = half[0], b = half[1];
    snprintf(made->uuid, sizeof made->uuid, "MIG-%08llx-%04llx-5%03llx-%04llx-%012llx", a >> 32, a >> 16 & 0xFFFF,
             a & 0xFFF, (b >> 48 & 0x3FFF) | 0x8000, b & 0xFFFFFFFFFFFF);
}

/* Make an instance at `start`, or at the first place that is free. */
static nvmlReturn_t make(Edit *edit, nvmlHandle_t instance, unsigned profile, const nvmlPlacement *wanted,
                         nvmlHandle_t *out) {
    Target target;
    nvmlPlacement all[8];
    nvmlReturn_t status = handle_target(edit->machine, instance, 1 << INSTANCE, &target);
    if (status != NVML_SUCCESS)
        return status;
    unsigned known = places(target.instance, profile, all);
    if (target.instance->computes == MAX_COMPUTE)
        return NVML_INSUFFICIENT_RESOURCES;
    for (unsigned i = 0; i < known; i++) {
        if ((wanted && wanted->start != all[i].start) || !is_free(target.instance, &all[i]))
            continue;
        Compute made = {.id = free_id(target.instance), .slices = all[i].size, .start = all[i].start};
        status = next_birth(edit, &made.birth);
        if (status != NVML_SUCCESS)
            return status;
        name_compute(target.gpu, target.instance, &made);
        *out = handle_of(COMPUTE, target.gpu, target.instance, &made);
        return edit_append(edit, "gpu %u compute %u %u %u %u %u %s", target.gpu->index, target.instance->id, made.id,
                           made.slices, made.start, made.birth, made.uuid);
    }
    return NVML_INSUFFICIENT_RESOURCES;
}

static nvmlReturn_t create(const char *function, nvmlHandle_t instance, unsigned profile, const nvmlPlacement *wanted,
                           nvmlHandle_t *out) {
    Target target;
    nvmlPlacement all[8];
    Edit edit;
    nvmlReturn_t status = call_profile(function, instance, out, profile, &target);
    if (status != NVML_SUCCESS)
        return status;
    bool possible = !wanted;
    for (unsigned i = places(target.instance, profile, all); wanted && i-- > 0;)
        possible = possible || (all[i].start == wanted->start && all[i].size == wanted->size);
    if (!possible)
        return NVML_INVALID_ARGUMENT;
    status = write_begin(&edit);
    if (status == NVML_SUCCESS)
        status = make(&edit, instance, profile, wanted, out);
    return write_end(&edit, status);
}

API nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvmlHandle_t instance, unsigned profile, nvmlHandle_t *out) {
    return call_end(create(__func__, instance, profile, NULL, out));
}

API nvmlReturn_t nvmlGpuInstanceCreateComputeInstanceWithPlacement(nvmlHandle_t instance, unsigned profile,
                                                                   const nvmlPlacement *place, nvmlHandle_t *out) {
    return call_end(create(__func__, instance, profile, place, place ? out : NULL));
}

static bool used(const Target *target) {
    for (unsigned i = 0; i < target->gpu->processes; i++) {
        const Process *one = &target->gpu->process[i];
        if (one->instance == target->instance->id && one->compute == target->compute->id)
            return true;
    }
    return false;
}

static nvmlReturn_t destroy(Edit *edit, nvmlHandle_t compute) {
    Target target;
    char line[64];
    nvmlReturn_t status = handle_target(edit->machine, compute, 1 << COMPUTE, &target);
    if (status != NVML_SUCCESS)
        return status;
    if (used(&target))
        return NVML_IN_USE;
    snprintf(line, sizeof line, "gpu %u compute %u %u", target.gpu->index, target.instance->id, target.compute->id);
    edit_remove(edit, line);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlComputeInstanceDestroy(nvmlHandle_t compute) {
    Target target;
    Edit edit;
    nvmlReturn_t status = call_compute(__func__, compute, &compute, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    status = write_begin(&edit);
    if (status == NVML_SUCCESS)
        status = destroy(&edit, compute);
    return call_end(write_end(&edit, status));
}
