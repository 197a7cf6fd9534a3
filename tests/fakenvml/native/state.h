/* The machine of the state file as this process last read it, and how to change it. */
#ifndef FAKENVML_STATE_H
#define FAKENVML_STATE_H

#include <stdbool.h>
#include <stddef.h>

#include "abi.h"

enum { MAX_GPUS = 64, MAX_PROFILES = 18, MAX_STARTS = 16, MAX_INSTANCES = 16, MAX_COMPUTE = 8 };

typedef struct {
    const char *key, *value;
} Fact;

typedef struct {
    unsigned number, id, compute, size, limit, multiprocessors, copy, decoder, encoder, jpeg, ofa, starts;
    unsigned long long memory_mib;
    bool media;
    unsigned start[MAX_STARTS];
    char name[32];
} Profile;

typedef struct {
    unsigned id, slices, start, birth;
    char uuid[96];
} Compute;

typedef struct {
    unsigned id, start, birth, computes;
    const Profile *profile;
    Compute compute[MAX_COMPUTE];
} Instance;

typedef struct {
    unsigned pid, instance, compute, sm, memory, encoder, decoder;
    unsigned long long mib; /* NVML_MEMORY_NOT_AVAILABLE where the driver does not say */
    char kind[16];
} Process;

typedef struct {
    double rate, total, since;
} Meter;

typedef struct {
    unsigned index, facts, profiles, instances, processes;
    Fact *fact; /* every line of the GPU, sorted by key, in file order within a key */
    Profile profile[MAX_PROFILES];
    Instance instance[MAX_INSTANCES];
    Process *process;
} Gpu;

typedef struct {
    unsigned long long number, data;
    unsigned gpu, type, instance, compute;
} Event;

typedef struct {
    unsigned number, code;
    int gpu; /* -1: all */
    long after, times; /* times -1: always */
    double seconds;
    char kind; /* 'h'ang, 'f'ail, 'c'rash; a crash after its effect has code 1 */
    char pattern[96];
} Rule;

typedef struct {
    char *text; /* the file; facts point into it */
    double changed; /* when, in seconds since 1970 */
    unsigned gpus, events, rules, facts, births;
    Gpu *gpu;
    Event *event;
    Rule *rule;
    Fact *fact; /* every other line, sorted as those of a GPU */
} Machine;

/* Parse `text`, which the machine then owns; NULL without memory. Lines it does not know are left alone. */
Machine *machine_parse(char *text, double changed);
void machine_free(Machine *machine);

/* The first value of a key, or NULL. `fact_next` is the next one of the same key. */
const Fact *fact_first(const Fact *facts, unsigned count, const char *key);
const Fact *fact_next(const Fact *facts, unsigned count, const Fact *fact);
const char *machine_text(const Machine *machine, const char *key);
const char *gpu_text(const Gpu *gpu, const char *key);
bool gpu_flag(const Gpu *gpu, const char *key);
bool gpu_number(const Gpu *gpu, const char *key, unsigned long long *number);
bool gpu_violation(const Gpu *gpu, unsigned policy, unsigned long long *nanoseconds);
bool gpu_meter(const Gpu *gpu, const char *key, Meter *meter);
bool meter_parse(const char *text, Meter *meter);
bool pci_parse(const char *text, nvmlPciInfo *pci);
const Gpu *gpu_at(const Machine *machine, const nvmlPciInfo *place);
double machine_now(const Machine *machine);
double meter_total(const Machine *machine, const Meter *meter);

/* The machine as the file is now; NULL (DRIVER_NOT_LOADED) when there is none. */
const Machine *state_refresh(void);
void state_open(void);

/* A change of the file: the text under the file's lock, and its replacement. */
typedef struct {
    char *text;
    int lock;
    Machine *machine; /* parsed from a copy of the text */
} Edit;

nvmlReturn_t edit_begin(Edit *edit);
/* Remove the lines that start with `prefix`, which ends at a word's end. */
void edit_remove(Edit *edit, const char *prefix);
nvmlReturn_t edit_append(Edit *edit, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Replace the file when `status` is SUCCESS, then let go of the lock; the status of the whole. */
nvmlReturn_t edit_end(Edit *edit, nvmlReturn_t status);

#endif
