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

bool gpu_violation(const Gpu *gpu, unsigned policy, unsigned long long *nanoseconds) {
    for (const Fact *f = fact_first(gpu->fact, gpu->facts, "violation"); f; f = fact_next(gpu->fact, gpu->facts, f)) {
        unsigned own;
        if (sscanf(f->value, "%u %llu", &own, nanoseconds) == 2 && own == policy)
            return true;
    }
    return false;
}

bool meter_parse(const char *text, Meter *meter) {
    *meter = (Meter){0, 0, -1};
    return sscanf(text, "%lf %lf %lf", &meter->rate, &meter->total, &meter->since) >= 1;
}

bool gpu_meter(const Gpu *gpu, const char *key, Meter *meter) {
    const char *text = gpu_text(gpu, key);
    return text && meter_parse(text, meter);
}

/* `0000:07:00.0`, `00000000:07:00.0` and `07:00.0` name one device, with its function or without. */
bool pci_parse(const char *text, nvmlPciInfo *pci) {
    unsigned domain, bus, device;
    if (sscanf(text, "%x:%x:%x", &domain, &bus, &device) != 3) {
        domain = 0;
        if (sscanf(text, "%x:%x", &bus, &device) != 2)
            return false;
    }
    *pci = (nvmlPciInfo){.domain = domain, .bus = bus & 0xFF, .device = device & 0xFF};
    snprintf(pci->bus_id, sizeof pci->bus_id, "%08X:%02X:%02X.0", domain, pci->bus, pci->device);
    snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "%04X:%02X:%02X.0", domain & 0xFFFF, pci->bus,
             pci->device);
    return true;
}

const Gpu *gpu_at(const Machine *machine, const nvmlPciInfo *place) {
    for (unsigned i = 0; i < machine->gpus; i++) {
        nvmlPciInfo own;
        const char *text = gpu_text(&machine->gpu[i], "pci-bus-id");
        if (text && pci_parse(text, &own) && strcmp(own.bus_id, place->bus_id) == 0)
            return &machine->gpu[i];
    }
    return NULL;
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
