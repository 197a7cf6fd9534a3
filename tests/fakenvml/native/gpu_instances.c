/* GPU instances: a run of memory slices each, where the profile allows and nobody else lies. */
#include <stdio.h>
#include <string.h>

#include "call.h"
#include "partition.h"

static unsigned slots_of(const Gpu *gpu) {
    unsigned slots = 1;
    for (unsigned i = 0; i < gpu->profiles; i++)
        if (gpu->profile[i].size > slots)
            slots = gpu->profile[i].size;
    return slots;
}

static bool is_free(const Gpu *gpu, unsigned start, unsigned size) {
    for (unsigned i = 0; i < gpu->instances; i++) {
        const Instance *one = &gpu->instance[i];
        if (start < one->start + one->profile->size && one->start < start + size)
            return false;
    }
    return true;
}

/* How many more instances of a profile its limit allows, and the media engines, of which a GPU has one set. */
static unsigned allowed(const Gpu *gpu, const Profile *profile) {
    unsigned same = 0;
    bool media = false;
    for (unsigned i = 0; i < gpu->instances; i++) {
        same += gpu->instance[i].profile == profile;
        media = media || gpu->instance[i].profile->media;
    }
    return (profile->media && media) || same >= profile->limit ? 0 : profile->limit - same;
}

/* Starts are in order and instances of one size, so taking the first that fits again and again takes most. */
static unsigned capacity(const Gpu *gpu, const Profile *profile) {
    unsigned found = 0, next = 0;
    for (unsigned i = 0; i < profile->starts; i++)
        if (profile->start[i] >= next && is_free(gpu, profile->start[i], profile->size)) {
            found++;
            next = profile->start[i] + profile->size;
        }
    unsigned limit = allowed(gpu, profile);
    return found < limit ? found : limit;
}

static const Profile *by_number(const Gpu *gpu, unsigned number) {
    for (unsigned i = 0; i < gpu->profiles; i++)
        if (gpu->profile[i].number == number)
            return &gpu->profile[i];
    return NULL;
}

static const Profile *by_id(const Gpu *gpu, unsigned id) {
    for (unsigned i = 0; i < gpu->profiles; i++)
        if (gpu->profile[i].id == id)
            return &gpu->profile[i];
    return NULL;
}

/* A call about a profile that is named by its number or by its id; with MIG off some drivers tell of profiles. */
static nvmlReturn_t call_profile(const char *function, nvmlHandle_t device, const void *out, unsigned name,
                                 const Profile *(*find)(const Gpu *, unsigned), const Profile **profile,
                                 const Gpu **gpu) {
    nvmlReturn_t status = call_gpu(function, device, out, gpu);
    if (status != NVML_SUCCESS)
        return status;
    if ((*gpu)->profiles == 0 || !(gpu_flag(*gpu, "mig") || gpu_flag(*gpu, "mig-query")))
        return NVML_NOT_SUPPORTED;
    *profile = find(*gpu, name);
    if (*profile)
        return NVML_SUCCESS;
    return find == by_number && name < MAX_PROFILES ? NVML_NOT_SUPPORTED : NVML_INVALID_ARGUMENT;
}

static nvmlReturn_t call_enabled(const char *function, nvmlHandle_t device, const void *out, unsigned id,
                                 const Profile **profile, const Gpu **gpu) {
    nvmlReturn_t status = call_profile(function, device, out, id, by_id, profile, gpu);
    return status == NVML_SUCCESS && !gpu_flag(*gpu, "mig") ? NVML_NOT_SUPPORTED : status;
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlHandle_t device, unsigned number,
                                                     nvmlGpuInstanceProfile *out) {
    const Gpu *gpu;
    const Profile *p;
    nvmlReturn_t status = call_profile(__func__, device, out, number, by_number, &p, &gpu);
    if (status == NVML_SUCCESS)
        *out = (nvmlGpuInstanceProfile){p->id,      0,          p->compute, p->limit, p->multiprocessors, p->copy,
                                        p->decoder, p->encoder, p->jpeg,    p->ofa,   p->memory_mib};
    return call_end(status);
}

static nvmlReturn_t describe(const Profile *p, nvmlGpuInstanceProfile_v2 *out) {
    unsigned version = out->version;
    if (version != NVML_VERSION(nvmlGpuInstanceProfile_v2, 2))
        return NVML_ARGUMENT_VERSION_MISMATCH;
    *out = (nvmlGpuInstanceProfile_v2){version, p->id,      0,          p->compute, p->limit, p->multiprocessors,
                                       p->copy, p->decoder, p->encoder, p->jpeg,    p->ofa,   p->memory_mib,
                                       ""};
    snprintf(out->name, sizeof out->name, "MIG %s", p->name);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlHandle_t device, unsigned number,
                                                      nvmlGpuInstanceProfile_v2 *out) {
    const Gpu *gpu;
    const Profile *profile;
    nvmlReturn_t status = call_profile(__func__, device, out, number, by_number, &profile, &gpu);
    return call_end(status == NVML_SUCCESS ? describe(profile, out) : status);
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoByIdV(nvmlHandle_t device, unsigned id,
                                                          nvmlGpuInstanceProfile_v2 *out) {
    const Gpu *gpu;
    const Profile *profile;
    nvmlReturn_t status = call_profile(__func__, device, out, id, by_id, &profile, &gpu);
    return call_end(status == NVML_SUCCESS ? describe(profile, out) : status);
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceRemainingCapacity(nvmlHandle_t device, unsigned id, unsigned *count) {
    const Gpu *gpu;
    const Profile *profile;
    nvmlReturn_t status = call_enabled(__func__, device, count, id, &profile, &gpu);
    if (status == NVML_SUCCESS)
        *count = capacity(gpu, profile);
    return call_end(status);
}

/* Without `out` it only counts. */
API nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlHandle_t device, unsigned id, nvmlPlacement *out,
                                                               unsigned *count) {
    const Gpu *gpu;
    const Profile *profile;
    nvmlReturn_t status = call_profile(__func__, device, count, id, by_id, &profile, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    for (unsigned i = 0; out && i < profile->starts; i++)
        out[i] = (nvmlPlacement){profile->start[i], profile->size};
    *count = profile->starts;
    return call_end(NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlHandle_t device, unsigned id, nvmlHandle_t *out, unsigned *count) {
    const Gpu *gpu;
    const Profile *profile;
    nvmlReturn_t status = call_enabled(__func__, device, out ? count : NULL, id, &profile, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    *count = 0;
    for (unsigned i = 0; i < gpu->instances; i++)
        if (gpu->instance[i].profile == profile)
            out[(*count)++] = handle_of(INSTANCE, gpu, &gpu->instance[i], NULL);
    return call_end(NVML_SUCCESS);
}

API nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlHandle_t device, unsigned id, nvmlHandle_t *out) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(__func__, device, out, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    if (!gpu_flag(gpu, "mig"))
        return call_end(NVML_NOT_SUPPORTED);
    for (unsigned i = 0; i < gpu->instances; i++)
        if (gpu->instance[i].id == id) {
            *out = handle_of(INSTANCE, gpu, &gpu->instance[i], NULL);
            return call_end(NVML_SUCCESS);
        }
    return call_end(NVML_NOT_FOUND);
}

API nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlHandle_t instance, nvmlGpuInstanceInfo *out) {
    Target target;
    nvmlReturn_t status = call_instance(__func__, instance, out, &target);
    if (status == NVML_SUCCESS) {
        const Instance *one = target.instance;
        nvmlHandle_t device = handle_of(GPU, target.gpu, NULL, NULL);
        *out = (nvmlGpuInstanceInfo){device, one->id, one->profile->id, {one->start, one->profile->size}};
    }
    return call_end(status);
}

nvmlReturn_t next_birth(Edit *edit, unsigned *birth) {
    *birth = edit->machine->births + 1;
    edit_remove(edit, "births");
    return edit_append(edit, "births %u", *birth);
}

/* Slices are halved again and again and the halves numbered, so that an id follows from the place. */
static unsigned id_at(const Gpu *gpu, const Profile *profile, unsigned start) {
    unsigned width = 1;
    while (width < profile->size)
        width *= 2;
    return slots_of(gpu) / width - 1 + start / width;
}

/* Make an instance at `*start`, or at the first place that is free. */
static nvmlReturn_t make(Edit *edit, nvmlHandle_t device, unsigned profile_id, const unsigned *start,
                         nvmlHandle_t *out) {
    Target target;
    nvmlReturn_t status = handle_target(edit->machine, device, 1 << GPU, &target);
    if (status != NVML_SUCCESS)
        return status;
    const Gpu *gpu = target.gpu;
    const Profile *profile = by_id(gpu, profile_id);
    if (!profile || !gpu_flag(gpu, "mig"))
        return NVML_NOT_SUPPORTED;
    if (allowed(gpu, profile) == 0 || gpu->instances == MAX_INSTANCES)
        return NVML_INSUFFICIENT_RESOURCES;
    for (unsigned i = 0; i < profile->starts; i++) {
        unsigned place = profile->start[i];
        if ((start && place != *start) || !is_free(gpu, place, profile->size))
            continue;
        Instance made = {.id = id_at(gpu, profile, place), .start = place, .profile = profile};
        status = next_birth(edit, &made.birth);
        *out = handle_of(INSTANCE, gpu, &made, NULL);
        return status != NVML_SUCCESS ? status
                                      : edit_append(edit, "gpu %u instance %u %u %u %u", gpu->index, made.id,
                                                    profile->id, place, made.birth);
    }
    return NVML_INSUFFICIENT_RESOURCES;
}

API nvmlReturn_t nvmlDeviceCreateGpuInstance(nvmlHandle_t device, unsigned id, nvmlHandle_t *out) {
    const Gpu *gpu;
    const Profile *profile;
    Edit edit;
    nvmlReturn_t status = call_enabled(__func__, device, out, id, &profile, &gpu);
    if (status != NVML_SUCCESS)
        return call_end(status);
    status = write_begin(&edit);
    if (status == NVML_SUCCESS)
        status = make(&edit, device, id, NULL, out);
    return call_end(write_end(&edit, status));
}

static bool can_lie(const Profile *profile, const nvmlPlacement *place) {
    for (unsigned i = 0; i < profile->starts; i++)
        if (profile->start[i] == place->start && profile->size == place->size)
            return true;
    return false;
}

API nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(nvmlHandle_t device, unsigned id, const nvmlPlacement *place,
                                                          nvmlHandle_t *out) {
    const Gpu *gpu;
    const Profile *profile;
    Edit edit;
    nvmlReturn_t status = call_enabled(__func__, device, place ? out : NULL, id, &profile, &gpu);
    if (status == NVML_SUCCESS && !can_lie(profile, place))
        status = NVML_INVALID_ARGUMENT;
    if (status != NVML_SUCCESS)
        return call_end(status);
    status = write_begin(&edit);
    if (status == NVML_SUCCESS)
        status = make(&edit, device, id, &place->start, out);
    return call_end(write_end(&edit, status));
}

static nvmlReturn_t destroy(Edit *edit, nvmlHandle_t instance) {
    Target target;
    char line[48];
    nvmlReturn_t status = handle_target(edit->machine, instance, 1 << INSTANCE, &target);
    if (status != NVML_SUCCESS)
        return status;
    if (target.instance->computes)
        return NVML_IN_USE;
    snprintf(line, sizeof line, "gpu %u instance %u", target.gpu->index, target.instance->id);
    edit_remove(edit, line);
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpuInstanceDestroy(nvmlHandle_t instance) {
    Target target;
    Edit edit;
    nvmlReturn_t status = call_instance(__func__, instance, &instance, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    status = write_begin(&edit);
    if (status == NVML_SUCCESS)
        status = destroy(&edit, instance);
    return call_end(write_end(&edit, status));
}
