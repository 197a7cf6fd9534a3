/* GPM: a sample is what the meters of a GPU or GPU instance showed at one time; two of them give averages. What
 * the state does not give is idle. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"

enum { MAX_METRICS = 480, FIRST_NVLINK = 60, LAST_NVLINK = 97 };

typedef struct {
    unsigned gpu, instance, metrics;
    bool filled, nvlink;
    double taken;
    struct {
        unsigned metric;
        double total;
    } meter[MAX_METRICS];
} Sample;

API nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlHandle_t device, nvmlGpmSupport *support) {
    const Gpu *gpu;
    nvmlReturn_t status = call_gpu(__func__, device, support, &gpu);
    if (status == NVML_SUCCESS)
        support->supported = gpu_flag(gpu, "gpm");
    return call_end(status);
}

API nvmlReturn_t nvmlGpmSampleAlloc(void **sample) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(__func__, sample, &machine);
    if (status == NVML_SUCCESS && !(*sample = calloc(1, sizeof(Sample))))
        status = NVML_MEMORY;
    return call_end(status);
}

API nvmlReturn_t nvmlGpmSampleFree(void *sample) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(__func__, sample, &machine);
    if (status == NVML_SUCCESS)
        free(sample);
    return call_end(status);
}

static nvmlReturn_t fill(const Machine *machine, const Gpu *gpu, unsigned instance, Sample *sample) {
    if (!gpu_flag(gpu, "gpm"))
        return NVML_NOT_SUPPORTED;
    *sample = (Sample){.gpu = gpu->index, .instance = instance, .filled = true, .taken = machine_now(machine)};
    for (const Fact *f = fact_first(gpu->fact, gpu->facts, "gpm-rate"); f; f = fact_next(gpu->fact, gpu->facts, f)) {
        char owner[16];
        unsigned metric;
        int length = 0;
        Meter meter;
        if (sscanf(f->value, "%15s %u %n", owner, &metric, &length) < 2 || !meter_parse(f->value + length, &meter))
            continue;
        unsigned own = strcmp(owner, "-") == 0 ? NVML_ANY_ID : (unsigned)strtoul(owner, NULL, 0);
        if (own != instance || sample->metrics == MAX_METRICS)
            continue;
        sample->meter[sample->metrics].metric = metric;
        sample->meter[sample->metrics++].total = meter_total(machine, &meter);
    }
    sample->nvlink = fact_first(gpu->fact, gpu->facts, "nvlink") && !gpu_flag(gpu, "mig");
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpmSampleGet(nvmlHandle_t device, void *sample) {
    Target target;
    nvmlReturn_t status = call_device(__func__, device, sample, &target);
    if (status == NVML_SUCCESS)
        status = fill(target.machine, target.gpu, target.instance ? target.instance->id : NVML_ANY_ID, sample);
    return call_end(status);
}

API nvmlReturn_t nvmlGpmMigSampleGet(nvmlHandle_t device, unsigned instance, void *sample) {
    Target target;
    bool exists = false;
    nvmlReturn_t status = call_device(__func__, device, sample, &target);
    if (status == NVML_SUCCESS && (target.instance || !gpu_flag(target.gpu, "mig")))
        status = NVML_NOT_SUPPORTED;
    for (unsigned i = 0; status == NVML_SUCCESS && i < target.gpu->instances; i++)
        exists = exists || target.gpu->instance[i].id == instance;
    if (status == NVML_SUCCESS)
        status = exists ? fill(target.machine, target.gpu, instance, sample) : NVML_INVALID_ARGUMENT;
    return call_end(status);
}

static double total_of(const Sample *sample, unsigned metric) {
    for (unsigned i = 0; i < sample->metrics; i++)
        if (sample->meter[i].metric == metric)
            return sample->meter[i].total;
    return 0;
}

static nvmlReturn_t measure(const Sample *first, const Sample *second, nvmlGpmMetric *metric) {
    double passed = second->taken - first->taken;
    metric->value = 0;
    if (metric->id == 0 || metric->id >= MAX_METRICS)
        return NVML_INVALID_ARGUMENT;
    if (metric->id >= FIRST_NVLINK && metric->id <= LAST_NVLINK && !(first->nvlink && second->nvlink))
        return NVML_NOT_SUPPORTED;
    if (passed <= 0)
        return NVML_NO_DATA;
    metric->value = (total_of(second, metric->id) - total_of(first, metric->id)) / passed;
    return NVML_SUCCESS;
}

API nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetrics *request) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(__func__, request, &machine);
    if (status != NVML_SUCCESS)
        return call_end(status);
    const Sample *first = request->first, *second = request->second;
    if (request->version != 1)
        return call_end(NVML_ARGUMENT_VERSION_MISMATCH);
    if (!first || !second || !first->filled || !second->filled || first->gpu != second->gpu ||
        first->instance != second->instance)
        return call_end(NVML_INVALID_ARGUMENT);
    for (unsigned i = 0; i < request->count; i++)
        request->metrics[i].status = measure(first, second, &request->metrics[i]);
    return call_end(NVML_SUCCESS);
}
