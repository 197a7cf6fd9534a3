/* Looking things up in a machine: by key, sorted, with the first of equal keys first. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "state.h"

const Fact *fact_first(const Fact *facts, unsigned count, const char *key) {
    unsigned low = 0, high = count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (strcmp(facts[middle].key, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && strcmp(facts[low].key, key) == 0 ? &facts[low] : NULL;
}

const Fact *fact_next(const Fact *facts, unsigned count, const Fact *fact) {
    const Fact *next = fact + 1;
    return next < facts + count && strcmp(next->key, fact->key) == 0 ? next : NULL;
}

const char *machine_text(const Machine *machine, const char *key) {
    const Fact *fact = fact_first(machine->fact, machine->facts, key);
    return fact ? fact->value : NULL;
}

const char *gpu_text(const Gpu *gpu, const char *key) {
    const Fact *fact = fact_first(gpu->fact, gpu->facts, key);
    return fact ? fact->value : NULL;
}

bool gpu_flag(const Gpu *gpu, const char *key) {
    const char *text = gpu_text(gpu, key);
    return text && (strcmp(text, "yes") == 0 || strcmp(text, "on") == 0);
}

bool gpu_number(const Gpu *gpu, const char *key, unsigned long long *number) {
    const char *text = gpu_text(gpu, key);
    if (!text)
        return false;
    *number = strtoull(text, NULL, 0);
    return true;
}

bool meter_parse(const char *text, Meter *meter) {
    *meter = (Meter){0, 0, -1};
    return sscanf(text, "%lf %lf %lf", &meter->rate, &meter->total, &meter->since) >= 1;
}

bool gpu_meter(const Gpu *gpu, const char *key, Meter *meter) {
    const char *text = gpu_text(gpu, key);
    return text && meter_parse(text, meter);
}

double machine_now(const Machine *machine) {
    const char *clock = machine_text(machine, "clock");
    if (clock)
        return strtod(clock, NULL);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

double meter_total(const Machine *machine, const Meter *meter) {
    double since = meter->since < 0 ? machine->changed : meter->since;
    double passed = machine_now(machine) - since;
    return meter->total + (passed > 0 ? meter->rate * passed : 0);
}
