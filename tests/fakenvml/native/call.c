/* The start and the end of every call, and the rules that make calls hang, fail or kill the process. */
#include "call.h"

#include <fnmatch.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_COUNTERS = 256, CRASH_STATUS = 70 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned users;
static char opened[4096];
static struct {
    unsigned rule;
    long calls;
} counter[MAX_COUNTERS];

void call_lock(void) {
    pthread_mutex_lock(&mutex);
}

void call_unlock(void) {
    pthread_mutex_unlock(&mutex);
}

/* How often this process has met a rule, this time included. */
static long met(unsigned rule) {
    for (unsigned i = 0; i < MAX_COUNTERS; i++) {
        if (counter[i].calls == 0)
            counter[i].rule = rule;
        if (counter[i].rule == rule)
            return ++counter[i].calls;
    }
    return 0;
}

const Machine *call_refresh(void) {
    const Machine *machine = state_refresh();
    const char *loaded = machine ? machine_text(machine, "loaded") : NULL;
    return machine && (!loaded || strcmp(loaded, "no") != 0) ? machine : NULL;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static bool applies(const Rule *rule, char kind, const char *function, int gpu) {
    return rule->kind == kind && (rule->gpu < 0 || rule->gpu == gpu) &&
           fnmatch(rule->pattern, function, 0) == 0;
}

static bool hangs(const Machine *machine, const char *function, int gpu, double passed) {
    for (unsigned i = 0; i < machine->rules; i++)
        if (applies(&machine->rule[i], 'h', function, gpu) && passed < machine->rule[i].seconds)
            return true;
    return false;
}

static nvmlReturn_t failure(const Machine *machine, const char *function, int gpu) {
    for (unsigned i = 0; i < machine->rules; i++) {
        const Rule *rule = &machine->rule[i];
        if (!applies(rule, 'f', function, gpu))
            continue;
        long past = met(rule->number) - rule->after;
        if (past > 0 && (rule->times < 0 || past <= rule->times))
            return rule->code;
    }
    return NVML_SUCCESS;
}

/* The lock is free while a call hangs, and a call hangs only as long as its rule stands in the file. */
static nvmlReturn_t enter(const char *function, int gpu, const Machine **machine) {
    call_lock();
    for (double start = seconds();;) {
        if (users == 0)
            return NVML_UNINITIALIZED;
        *machine = call_refresh();
        if (!*machine)
            return NVML_DRIVER_NOT_LOADED;
        if (!hangs(*machine, function, gpu, seconds() - start))
            return failure(*machine, function, gpu);
        call_unlock();
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        call_lock();
    }
}

nvmlReturn_t call_open(const char *function) {
    const char *wanted = getenv("GPUFLEET_FAKE_NVML");
    const Machine *machine;
    call_lock();
    if (strcmp(opened, wanted ? wanted : "") != 0) {
        memset(counter, 0, sizeof counter);
        snprintf(opened, sizeof opened, "%s", wanted ? wanted : "");
    }
    state_open();
    users++;
    call_unlock();
    nvmlReturn_t status = enter(function, -1, &machine);
    users -= status != NVML_SUCCESS;
    return status;
}

nvmlReturn_t call_close(void) {
    call_lock();
    if (users == 0)
        return NVML_UNINITIALIZED;
    users--;
    return NVML_SUCCESS;
}

bool call_is_open(void) {
    return users > 0;
}

/* A handle names kind, GPU, ids and birth, so that it needs no memory and cannot dangle. */
enum { MARK = 0xFA };

nvmlHandle_t handle_of(Kind kind, const Gpu *gpu, const Instance *instance, const Compute *compute) {
    uint64_t birth = compute ? compute->birth : instance ? instance->birth : 0;
    uint64_t value = (uint64_t)MARK << 56 | (uint64_t)kind << 52 | (uint64_t)gpu->index << 44;
    value |= (uint64_t)(instance ? instance->id : 0) << 36 | (uint64_t)(compute ? compute->id : 0) << 28;
    return (nvmlHandle_t)(uintptr_t)(value | (birth & 0xFFFFFFF));
}

static int handle_gpu(nvmlHandle_t handle) {
    uint64_t value = (uintptr_t)handle;
    return value >> 56 == MARK ? (int)(value >> 44 & 0xFF) : -1;
}

static nvmlReturn_t find_parts(const Gpu *gpu, uint64_t value, Kind kind, Target *target) {
    unsigned instance = value >> 36 & 0xFF, compute = value >> 28 & 0xFF, birth = value & 0xFFFFFFF;
    for (unsigned i = 0; i < gpu->instances; i++)
        if (gpu->instance[i].id == instance)
            target->instance = &gpu->instance[i];
    if (!target->instance)
        return NVML_NOT_FOUND;
    if (kind == INSTANCE)
        return (target->instance->birth & 0xFFFFFFF) == birth ? NVML_SUCCESS : NVML_NOT_FOUND;
    for (unsigned i = 0; i < target->instance->computes; i++) {
        const Compute *one = &target->instance->compute[i];
        if (one->id == compute && (one->birth & 0xFFFFFFF) == birth)
            target->compute = one;
    }
    return target->compute ? NVML_SUCCESS : NVML_NOT_FOUND;
}

nvmlReturn_t handle_target(const Machine *machine, nvmlHandle_t handle, unsigned kinds, Target *target) {
    uint64_t value = (uintptr_t)handle;
    int index = handle_gpu(handle);
    Kind kind = value >> 52 & 0xF;
    *target = (Target){.machine = machine};
    if (index < 0 || !(kinds & 1u << kind))
        return NVML_INVALID_ARGUMENT;
    if ((unsigned)index >= machine->gpus || machine->gpu[index].facts == 0)
        return NVML_NOT_FOUND;
    target->gpu = &machine->gpu[index];
    if (gpu_flag(target->gpu, "lost"))
        return NVML_GPU_IS_LOST;
    return kind == GPU ? NVML_SUCCESS : find_parts(target->gpu, value, kind, target);
}

nvmlReturn_t call_machine(const char *function, const void *out, const Machine **machine) {
    nvmlReturn_t status = enter(function, -1, machine);
    return status == NVML_SUCCESS && !out ? NVML_INVALID_ARGUMENT : status;
}

static nvmlReturn_t call_target(const char *function, nvmlHandle_t handle, const void *out, unsigned kinds,
                                Target *target) {
    const Machine *machine;
    nvmlReturn_t status = enter(function, handle_gpu(handle), &machine);
    if (status != NVML_SUCCESS)
        return status;
    return out ? handle_target(machine, handle, kinds, target) : NVML_INVALID_ARGUMENT;
}

nvmlReturn_t call_device(const char *function, nvmlHandle_t device, const void *out, Target *target) {
    return call_target(function, device, out, ANY_DEVICE, target);
}

nvmlReturn_t call_gpu(const char *function, nvmlHandle_t device, const void *out, const Gpu **gpu) {
    Target target = {0};
    nvmlReturn_t status = call_device(function, device, out, &target);
    *gpu = target.gpu;
    return status == NVML_SUCCESS && target.instance ? NVML_NOT_SUPPORTED : status;
}

nvmlReturn_t call_instance(const char *function, nvmlHandle_t instance, const void *out, Target *target) {
    return call_target(function, instance, out, 1 << INSTANCE, target);
}

nvmlReturn_t call_compute(const char *function, nvmlHandle_t compute, const void *out, Target *target) {
    return call_target(function, compute, out, 1 << COMPUTE, target);
}

nvmlReturn_t call_end(nvmlReturn_t status) {
    call_unlock();
    return status;
}

static const Rule *doom;

static void remove_doom(Edit *edit) {
    char line[32];
    snprintf(line, sizeof line, "crash %u", doom->number);
    edit_remove(edit, line);
}

nvmlReturn_t write_begin(Edit *edit) {
    doom = NULL;
    nvmlReturn_t status = edit_begin(edit);
    if (status != NVML_SUCCESS)
        return status;
    for (unsigned i = 0; i < edit->machine->rules; i++) {
        const Rule *rule = &edit->machine->rule[i];
        if (rule->kind == 'c' && met(rule->number) == rule->after)
            doom = rule;
    }
    if (doom && doom->code == 0) {
        remove_doom(edit);
        edit_end(edit, NVML_SUCCESS);
        _exit(CRASH_STATUS);
    }
    const char *root = machine_text(edit->machine, "root");
    return root && strcmp(root, "no") == 0 ? NVML_NO_PERMISSION : NVML_SUCCESS;
}

nvmlReturn_t write_end(Edit *edit, nvmlReturn_t status) {
    if (doom) {
        remove_doom(edit);
        edit_end(edit, NVML_SUCCESS);
        _exit(CRASH_STATUS);
    }
    return edit->text ? edit_end(edit, status) : status;
}

nvmlReturn_t copy_text(const char *text, char *buffer, unsigned length) {
    if (!text)
        return NVML_NOT_SUPPORTED;
    if (!buffer)
        return NVML_INVALID_ARGUMENT;
    if (strlen(text) + 1 > length)
        return NVML_INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return NVML_SUCCESS;
}
