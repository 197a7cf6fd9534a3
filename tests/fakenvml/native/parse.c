/* From the lines of the state file to a machine. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

static const struct {
    const char *word;
    unsigned type;
} EVENTS[] = {
    {"ecc-single", NVML_EVENT_SINGLE_BIT}, {"ecc-double", NVML_EVENT_DOUBLE_BIT},
    {"xid", NVML_EVENT_XID},               {"mig", NVML_EVENT_MIG},
    {"recovery", NVML_EVENT_RECOVERY},     {"unavailable", NVML_EVENT_UNAVAILABLE},
};

/* A dash is "none": the id that NVML gives to what is not part of an instance. */
static unsigned id_or_any(const char *word) {
    return strcmp(word, "-") == 0 ? NVML_ANY_ID : (unsigned)strtoul(word, NULL, 0);
}

static void *grown(void *array, unsigned count, size_t size) {
    if (count & (count - 1))
        return array;
    return realloc(array, (count ? count * 2 : 1) * size);
}

static bool add_fact(Fact **facts, unsigned *count, const char *key, const char *value) {
    Fact *larger = grown(*facts, *count, sizeof **facts);
    if (!larger)
        return false;
    *facts = larger;
    larger[(*count)++] = (Fact){key, value};
    return true;
}

static int by_key(const void *left, const void *right) {
    const Fact *a = left, *b = right;
    int order = strcmp(a->key, b->key);
    return order ? order : (a->value > b->value) - (a->value < b->value);
}

static bool add_event(Machine *machine, const char *line) {
    char kind[24], instance[16], compute[16];
    Event event = {0};
    if (sscanf(line, "%llu %u %23s %llu %15s %15s", &event.number, &event.gpu, kind, &event.data, instance,
               compute) != 6)
        return true;
    for (unsigned i = 0; i < sizeof EVENTS / sizeof *EVENTS; i++)
        if (strcmp(EVENTS[i].word, kind) == 0)
            event.type = EVENTS[i].type;
    event.instance = id_or_any(instance);
    event.compute = id_or_any(compute);
    Event *larger = grown(machine->event, machine->events, sizeof event);
    if (!larger)
        return false;
    machine->event = larger;
    machine->event[machine->events++] = event;
    return true;
}

static bool add_rule(Machine *machine, char kind, const char *line) {
    Rule rule = {.kind = kind, .gpu = -1, .times = -1};
    char gpu[16] = "-", times[16] = "-", when[16] = "";
    bool known = false;
    if (kind == 'h')
        known = sscanf(line, "%u %95s %15s %lf", &rule.number, rule.pattern, gpu, &rule.seconds) == 4;
    else if (kind == 'f')
        known = sscanf(line, "%u %95s %15s %u %ld %15s", &rule.number, rule.pattern, gpu, &rule.code,
                       &rule.after, times) == 6;
    else
        known = sscanf(line, "%u %ld %15s", &rule.number, &rule.after, when) == 3;
    if (!known)
        return true;
    rule.gpu = (int)id_or_any(gpu);
    rule.times = strcmp(times, "-") == 0 ? -1 : strtol(times, NULL, 0);
    if (kind == 'c')
        rule.code = strcmp(when, "after") == 0;
    Rule *larger = grown(machine->rule, machine->rules, sizeof rule);
    if (!larger)
        return false;
    machine->rule = larger;
    machine->rule[machine->rules++] = rule;
    return true;
}

static void read_profiles(Gpu *gpu) {
    for (const Fact *f = fact_first(gpu->fact, gpu->facts, "profile"); f; f = fact_next(gpu->fact, gpu->facts, f)) {
        if (gpu->profiles == MAX_PROFILES)
            return;
        Profile p = {0};
        char media[8], starts[96];
        if (sscanf(f->value, "%u %u %31s %u %u %u %7s %llu %u %u %u %u %u %u %95s", &p.number, &p.id, p.name,
                   &p.compute, &p.size, &p.limit, media, &p.memory_mib, &p.multiprocessors, &p.copy, &p.decoder,
                   &p.encoder, &p.jpeg, &p.ofa, starts) != 15)
            continue;
        p.media = strcmp(media, "yes") == 0;
        for (char *at = starts; *at && p.starts < MAX_STARTS; at += *at == ',')
            p.start[p.starts++] = (unsigned)strtoul(at, &at, 0);
        gpu->profile[gpu->profiles++] = p;
    }
}

static void read_instances(Gpu *gpu) {
    for (const Fact *f = fact_first(gpu->fact, gpu->facts, "instance"); f; f = fact_next(gpu->fact, gpu->facts, f)) {
        Instance one = {0};
        unsigned profile;
        if (gpu->instances == MAX_INSTANCES || sscanf(f->value, "%u %u %u %u", &one.id, &profile, &one.start, &one.birth) != 4)
            continue;
        for (unsigned i = 0; i < gpu->profiles; i++)
            if (gpu->profile[i].id == profile)
                one.profile = &gpu->profile[i];
        if (one.profile)
            gpu->instance[gpu->instances++] = one;
    }
    for (const Fact *f = fact_first(gpu->fact, gpu->facts, "compute"); f; f = fact_next(gpu->fact, gpu->facts, f)) {
        Compute one = {0};
        unsigned instance;
        if (sscanf(f->value, "%u %u %u %u %u %95s", &instance, &one.id, &one.slices, &one.start, &one.birth,
                   one.uuid) != 6)
            continue;
        for (unsigned i = 0; i < gpu->instances; i++)
            if (gpu->instance[i].id == instance && gpu->instance[i].computes < MAX_COMPUTE)
                gpu->instance[i].compute[gpu->instance[i].computes++] = one;
    }
}

static bool read_processes(Gpu *gpu) {
    for (const Fact *f = fact_first(gpu->fact, gpu->facts, "process"); f; f = fact_next(gpu->fact, gpu->facts, f)) {
        Process one = {0};
        char mib[24], instance[16], compute[16];
        if (sscanf(f->value, "%u %15s %23s %15s %15s %u %u %u %u", &one.pid, one.kind, mib, instance, compute, &one.sm,
                   &one.memory, &one.encoder, &one.decoder) < 3)
            continue;
        one.mib = strcmp(mib, "-") == 0 ? NVML_MEMORY_NOT_AVAILABLE : strtoull(mib, NULL, 0);
        one.instance = id_or_any(instance);
        one.compute = id_or_any(compute);
        Process *larger = grown(gpu->process, gpu->processes, sizeof one);
        if (!larger)
            return false;
        gpu->process = larger;
        gpu->process[gpu->processes++] = one;
    }
    return true;
}

static int instance_order(const void *left, const void *right) {
    const Instance *a = left, *b = right;
    return (a->id > b->id) - (a->id < b->id);
}

static int compute_order(const void *left, const void *right) {
    const Compute *a = left, *b = right;
    return (a->id > b->id) - (a->id < b->id);
}

static bool read_gpu(Gpu *gpu) {
    if (gpu->facts)
        qsort(gpu->fact, gpu->facts, sizeof *gpu->fact, by_key);
    read_profiles(gpu);
    read_instances(gpu);
    qsort(gpu->instance, gpu->instances, sizeof *gpu->instance, instance_order);
    for (unsigned i = 0; i < gpu->instances; i++)
        qsort(gpu->instance[i].compute, gpu->instance[i].computes, sizeof(Compute), compute_order);
    return read_processes(gpu);
}

/* Split off the word at `*line`; what remains is the rest of the line without leading blanks. */
static char *word(char **line) {
    char *start = *line + strspn(*line, " \t");
    char *end = start + strcspn(start, " \t");
    *line = end + strspn(end, " \t");
    *end = '\0';
    return start;
}

static bool add_line(Machine *machine, char *line) {
    char *key = word(&line);
    if (*key == '\0' || *key == '#')
        return true;
    if (strcmp(key, "gpu") == 0) {
        unsigned long index = strtoul(word(&line), NULL, 10);
        if (index >= MAX_GPUS)
            return true;
        if (index >= machine->gpus)
            machine->gpus = (unsigned)index + 1;
        key = word(&line);
        return add_fact(&machine->gpu[index].fact, &machine->gpu[index].facts, key, line);
    }
    if (strcmp(key, "event") == 0)
        return add_event(machine, line);
    if (strcmp(key, "hang") == 0 || strcmp(key, "fail") == 0 || strcmp(key, "crash") == 0)
        return add_rule(machine, *key, line);
    return add_fact(&machine->fact, &machine->facts, key, line);
}

Machine *machine_parse(char *text, double changed) {
    Machine *machine = calloc(1, sizeof *machine);
    if (!machine || !(machine->gpu = calloc(MAX_GPUS, sizeof *machine->gpu))) {
        free(machine);
        free(text);
        return NULL;
    }
    machine->text = text;
    machine->changed = changed;
    bool good = true;
    for (char *line = text; good && *line;) {
        size_t length = strcspn(line, "\r\n");
        char *next = line + length + strspn(line + length, "\r\n");
        line[length] = '\0';
        good = add_line(machine, line);
        line = next;
    }
    for (unsigned i = 0; good && i < machine->gpus; i++) {
        machine->gpu[i].index = i;
        good = read_gpu(&machine->gpu[i]);
    }
    if (!good) {
        machine_free(machine);
        return NULL;
    }
    if (machine->facts)
        qsort(machine->fact, machine->facts, sizeof *machine->fact, by_key);
    const char *births = machine_text(machine, "births");
    machine->births = births ? (unsigned)strtoul(births, NULL, 0) : 0;
    return machine;
}

void machine_free(Machine *machine) {
    if (!machine)
        return;
    for (unsigned i = 0; i < MAX_GPUS; i++) {
        free(machine->gpu[i].fact);
        free(machine->gpu[i].process);
    }
    free(machine->gpu);
    free(machine->event);
    free(machine->rule);
    free(machine->fact);
    free(machine->text);
    free(machine);
}
