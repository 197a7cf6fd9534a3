/* Events: a set hears of what happens to its GPUs after they were registered.
 *
 * A set is a place in a table and a serial number, so that a handle of a set that was freed is no set.
 */
#include <time.h>

#include "call.h"

enum { MAX_SETS = 256 };

typedef struct {
    unsigned serial; /* 0: free */
    unsigned long long types[MAX_GPUS], heard[MAX_GPUS];
} Set;

static Set sets[MAX_SETS];
static unsigned serials;

static nvmlHandle_t set_handle(unsigned place) {
    return (nvmlHandle_t)(uintptr_t)((uint64_t)0xFE << 56 | (uint64_t)sets[place].serial << 16 | place);
}

static Set *find_set(nvmlHandle_t handle) {
    uint64_t value = (uintptr_t)handle;
    Set *set = value >> 56 == 0xFE && (value & 0xFFFF) < MAX_SETS ? &sets[value & 0xFFFF] : NULL;
    return set && set->serial && set->serial == (unsigned)(value >> 16 & 0xFFFFFFFF) ? set : NULL;
}

API nvmlReturn_t nvmlEventSetCreate(nvmlHandle_t *out) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(__func__, out, &machine);
    if (status != NVML_SUCCESS)
        return call_end(status);
    for (unsigned i = 0; i < MAX_SETS; i++)
        if (sets[i].serial == 0) {
            sets[i] = (Set){.serial = ++serials};
            *out = set_handle(i);
            return call_end(NVML_SUCCESS);
        }
    return call_end(NVML_MEMORY);
}

/* Drivers that know no recovery action know no events about it. */
static unsigned long long supported(const Gpu *gpu) {
    unsigned long long types = NVML_EVENT_XID;
    if (gpu_flag(gpu, "ecc"))
        types |= NVML_EVENT_SINGLE_BIT | NVML_EVENT_DOUBLE_BIT;
    if (gpu->profiles)
        types |= NVML_EVENT_MIG;
    if (gpu_text(gpu, "recovery-action"))
        types |= NVML_EVENT_RECOVERY | NVML_EVENT_UNAVAILABLE;
    return types;
}

API nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlHandle_t device, unsigned long long *types) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(__func__, device, types, &gpu);
    if (status == NVML_SUCCESS)
        *types = supported(gpu);
    return call_end(status);
}

API nvmlReturn_t nvmlDeviceRegisterEvents(nvmlHandle_t device, unsigned long long types, nvmlHandle_t handle) {
    Target target;
    Set *set = NULL;
    nvmlReturn_t status = call_device(__func__, device, &types, &target);
    if (status == NVML_SUCCESS && !(set = find_set(handle)))
        status = NVML_INVALID_ARGUMENT;
    if (status == NVML_SUCCESS && (target.instance || types & ~supported(target.gpu)))
        status = NVML_NOT_SUPPORTED;
    if (status != NVML_SUCCESS)
        return call_end(status);
    const Machine *machine = target.machine;
    if (set->types[target.gpu->index] == 0)
        set->heard[target.gpu->index] = machine->events ? machine->event[machine->events - 1].number : 0;
    set->types[target.gpu->index] |= types;
    return call_end(NVML_SUCCESS);
}

static bool next_event(const Machine *machine, Set *set, nvmlEventData *out) {
    for (unsigned i = 0; i < machine->events; i++) {
        const Event *event = &machine->event[i];
        if (event->gpu >= machine->gpus || event->number <= set->heard[event->gpu])
            continue;
        set->heard[event->gpu] = event->number;
        if (!(set->types[event->gpu] & event->type))
            continue;
        *out = (nvmlEventData){handle_of(GPU, &machine->gpu[event->gpu], NULL, NULL), event->type, event->data,
                               event->instance, event->compute};
        return true;
    }
    return false;
}

static bool passed(const struct timespec *start, unsigned timeout_ms) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long ms = (now.tv_sec - start->tv_sec) * 1000LL + (now.tv_nsec - start->tv_nsec) / 1000000;
    return ms >= timeout_ms;
}

/* The lock is free while a call waits; a set that is freed meanwhile ends it. */
static nvmlReturn_t wait_event(nvmlHandle_t handle, nvmlEventData *out, unsigned timeout_ms, const Machine *machine) {
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (;;) {
        Set *set = find_set(handle);
        if (!set)
            return NVML_INVALID_ARGUMENT;
        if (next_event(machine, set, out))
            return NVML_SUCCESS;
        if (passed(&start, timeout_ms))
            return NVML_TIMEOUT;
        call_unlock();
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        call_lock();
        if (!call_is_open())
            return NVML_UNINITIALIZED;
        machine = call_refresh();
        if (!machine)
            return NVML_DRIVER_NOT_LOADED;
    }
}

API nvmlReturn_t nvmlEventSetWait_v2(nvmlHandle_t handle, nvmlEventData *out, unsigned timeout_ms) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(__func__, out, &machine);
    return call_end(status != NVML_SUCCESS ? status : wait_event(handle, out, timeout_ms, machine));
}

API nvmlReturn_t nvmlEventSetFree(nvmlHandle_t handle) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(__func__, &handle, &machine);
    if (status != NVML_SUCCESS)
        return call_end(status);
    Set *set = find_set(handle);
    if (!set)
        return call_end(NVML_INVALID_ARGUMENT);
    set->serial = 0;
    return call_end(NVML_SUCCESS);
}
