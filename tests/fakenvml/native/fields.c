/* Field values: many readings in one call, each with a status of its own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"

typedef enum { NUMBER, FLAG, ECC, METER, POLICY } Source;

static const struct {
    unsigned field;
    Source source;
    unsigned type;
    const char *key;
    unsigned policy;
} FIELDS[] = {
    {3, ECC, NVML_VALUE_U64, "ecc-single-volatile", 0},
    {4, ECC, NVML_VALUE_U64, "ecc-double-volatile", 0},
    {5, ECC, NVML_VALUE_U64, "ecc-single-aggregate", 0},
    {6, ECC, NVML_VALUE_U64, "ecc-double-aggregate", 0},
    {31, FLAG, NVML_VALUE_U32, "retired-pending", 0},
    {74, POLICY, NVML_VALUE_U64, NULL, 0},
    {75, POLICY, NVML_VALUE_U64, NULL, 1},
    {76, POLICY, NVML_VALUE_U64, NULL, 2},
    {77, POLICY, NVML_VALUE_U64, NULL, 3},
    {78, POLICY, NVML_VALUE_U64, NULL, 4},
    {79, POLICY, NVML_VALUE_U64, NULL, 5},
    {80, POLICY, NVML_VALUE_U64, NULL, 10},
    {81, POLICY, NVML_VALUE_U64, NULL, 11},
    {82, NUMBER, NVML_VALUE_U32, "temperature-memory", 0},
    {83, METER, NVML_VALUE_U64, "power", 0},
    {94, NUMBER, NVML_VALUE_U32, "pcie-replays", 0},
    {138, METER, NVML_VALUE_U64, "nvlink-tx", 0},
    {139, METER, NVML_VALUE_U64, "nvlink-rx", 0},
    {140, METER, NVML_VALUE_U64, "nvlink-tx", 0},
    {141, METER, NVML_VALUE_U64, "nvlink-rx", 0},
    {142, NUMBER, NVML_VALUE_U32, "remapped-correctable", 0},
    {143, NUMBER, NVML_VALUE_U32, "remapped-uncorrectable", 0},
    {144, FLAG, NVML_VALUE_U32, "remapped-pending", 0},
    {145, FLAG, NVML_VALUE_U32, "remapped-failure", 0},
    {230, NUMBER, NVML_VALUE_U32, "recovery-action", 0},
};

enum { LINK_COUNT = 91, POWER_AVERAGE = 185, POWER_INSTANT = 186 };

static unsigned count_links(const Gpu *gpu) {
    unsigned links = 0;
    for (const Fact *f = fact_first(gpu->fact, gpu->facts, "nvlink"); f; f = fact_next(gpu->fact, gpu->facts, f))
        links++;
    return links;
}

static bool read_meter(const Machine *machine, const Gpu *gpu, const char *key, nvmlValue *value) {
    Meter meter;
    if (strncmp(key, "nvlink", 6) == 0 && (count_links(gpu) == 0 || gpu_flag(gpu, "mig")))
        return false;
    if (!gpu_meter(gpu, key, &meter))
        return false;
    value->u64 = (unsigned long long)(meter_total(machine, &meter) + 0.5);
    return true;
}

static bool read_source(const Machine *machine, const Gpu *gpu, unsigned row, nvmlValue *value) {
    const char *key = FIELDS[row].key;
    unsigned long long number = 0;
    bool known = false;
    switch (FIELDS[row].source) {
    case NUMBER:
        known = gpu_number(gpu, key, &number);
        break;
    case ECC:
        known = gpu_flag(gpu, "ecc") && gpu_number(gpu, key, &number);
        break;
    case FLAG:
        known = gpu_text(gpu, key) != NULL;
        number = gpu_flag(gpu, key);
        break;
    case POLICY:
        known = gpu_violation(gpu, FIELDS[row].policy, &number);
        break;
    case METER:
        return read_meter(machine, gpu, key, value);
    }
    if (FIELDS[row].type == NVML_VALUE_U32)
        value->u32 = (unsigned)number;
    else
        value->u64 = number;
    return known;
}

/* A value that the state gives outright. */
static bool read_given(const Gpu *gpu, nvmlFieldValue *out) {
    for (const Fact *f = fact_first(gpu->fact, gpu->facts, "field"); f; f = fact_next(gpu->fact, gpu->facts, f)) {
        unsigned field, scope;
        char text[40];
        if (sscanf(f->value, "%u %u %39s", &field, &scope, text) != 3 || field != out->field || scope != out->scope)
            continue;
        bool real = strchr(text, '.') != NULL;
        out->type = real ? NVML_VALUE_DOUBLE : NVML_VALUE_U64;
        if (real)
            out->value.real = strtod(text, NULL);
        else
            out->value.u64 = strtoull(text, NULL, 0);
        return true;
    }
    return false;
}

static bool read_power(const Gpu *gpu, nvmlFieldValue *out) {
    Meter meter;
    if (!gpu_meter(gpu, "power", &meter))
        return false;
    out->type = NVML_VALUE_U32;
    out->value.u32 = (unsigned)(meter.rate + 0.5);
    return true;
}

static nvmlReturn_t read_field(const Machine *machine, const Gpu *gpu, nvmlFieldValue *out) {
    if (read_given(gpu, out))
        return NVML_SUCCESS;
    if (out->field == POWER_AVERAGE || out->field == POWER_INSTANT)
        return read_power(gpu, out) ? NVML_SUCCESS : NVML_NOT_SUPPORTED;
    if (out->field == LINK_COUNT) {
        out->type = NVML_VALUE_U32;
        out->value.u32 = count_links(gpu);
        return NVML_SUCCESS;
    }
    for (unsigned i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++)
        if (FIELDS[i].field == out->field) {
            out->type = FIELDS[i].type;
            return read_source(machine, gpu, i, &out->value) ? NVML_SUCCESS : NVML_NOT_SUPPORTED;
        }
    return NVML_NOT_SUPPORTED;
}

API nvmlReturn_t nvmlDeviceGetFieldValues(nvmlHandle_t device, int count, nvmlFieldValue *values) {
    Target target;
    nvmlReturn_t status = call_device(__func__, device, count > 0 ? values : NULL, &target);
    if (status != NVML_SUCCESS)
        return call_end(status);
    int64_t now_us = (int64_t)(machine_now(target.machine) * 1e6);
    for (int i = 0; i < count; i++) {
        values[i].value.u64 = 0;
        values[i].time_us = now_us;
        values[i].latency_us = 0;
        values[i].status = target.instance ? NVML_NOT_SUPPORTED : read_field(target.machine, target.gpu, &values[i]);
    }
    return call_end(NVML_SUCCESS);
}
