/* The library itself, the driver's versions, and processes of the machine. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"

static const struct {
    nvmlReturn_t code;
    const char *text;
} ERRORS[] = {
    {NVML_SUCCESS, "Success"},
    {NVML_UNINITIALIZED, "Uninitialized"},
    {NVML_INVALID_ARGUMENT, "Invalid Argument"},
    {NVML_NOT_SUPPORTED, "Not Supported"},
    {NVML_NO_PERMISSION, "Insufficient Permissions"},
    {5, "Already Initialized"},
    {NVML_NOT_FOUND, "Not Found"},
    {NVML_INSUFFICIENT_SIZE, "Insufficient Size"},
    {8, "Insufficient External Power"},
    {NVML_DRIVER_NOT_LOADED, "Driver Not Loaded"},
    {NVML_TIMEOUT, "Timeout"},
    {11, "Interrupt Request Issue"},
    {12, "NVML Shared Library Not Found"},
    {13, "Function Not Found"},
    {14, "Corrupted infoROM"},
    {NVML_GPU_IS_LOST, "GPU is lost"},
    {NVML_RESET_REQUIRED, "GPU requires reset"},
    {17, "The operating system has blocked the request."},
    {18, "RM has detected an NVML/RM version mismatch."},
    {NVML_IN_USE, "In use by another client"},
    {NVML_MEMORY, "Insufficient Memory"},
    {NVML_NO_DATA, "No data"},
    {NVML_INSUFFICIENT_RESOURCES, "Insufficient Resources"},
    {NVML_ARGUMENT_VERSION_MISMATCH, "Argument Version Mismatch"},
    {27, "Not Ready"},
    {28, "GPU Not Found"},
    {29, "Invalid State"},
};

API const char *nvmlErrorString(nvmlReturn_t code) {
    for (unsigned i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (ERRORS[i].code == code)
            return ERRORS[i].text;
    return "Unknown Error";
}

API nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return call_end(call_open(__func__));
}

API nvmlReturn_t nvmlInit_v2(void) {
    return call_end(call_open(__func__));
}

API nvmlReturn_t nvmlInit(void) {
    return call_end(call_open(__func__));
}

API nvmlReturn_t nvmlShutdown(void) {
    return call_end(call_close());
}

static nvmlReturn_t version(const char *function, const char *key, char *text, unsigned length) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(function, text, &machine);
    return call_end(status != NVML_SUCCESS ? status : copy_text(machine_text(machine, key), text, length));
}

API nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned length) {
    return version(__func__, "driver", text, length);
}

API nvmlReturn_t nvmlSystemGetNVMLVersion(char *text, unsigned length) {
    return version(__func__, "nvml", text, length);
}

static nvmlReturn_t cuda_version(const char *function, int *version) {
    const Machine *machine;
    int major = 0, minor = 0;
    nvmlReturn_t status = call_machine(function, version, &machine);
    if (status == NVML_SUCCESS) {
        const char *text = machine_text(machine, "cuda");
        if (text && sscanf(text, "%d.%d", &major, &minor) == 2)
            *version = major * 1000 + minor * 10;
        else
            status = NVML_NOT_SUPPORTED;
    }
    return call_end(status);
}

API nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    return cuda_version(__func__, version);
}

API nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    return cuda_version(__func__, version);
}

static bool has_process(const Machine *machine, unsigned pid) {
    for (unsigned i = 0; i < machine->gpus; i++)
        for (unsigned j = 0; j < machine->gpu[i].processes; j++)
            if (machine->gpu[i].process[j].pid == pid)
                return true;
    return false;
}

API nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    const Machine *machine;
    nvmlReturn_t status = call_machine(__func__, name, &machine);
    if (status != NVML_SUCCESS)
        return call_end(status);
    for (const Fact *f = fact_first(machine->fact, machine->facts, "name"); f;
         f = fact_next(machine->fact, machine->facts, f)) {
        char *rest;
        if (strtoul(f->value, &rest, 10) == pid)
            return call_end(copy_text(rest + strspn(rest, " \t"), name, length));
    }
    return call_end(has_process(machine, pid) ? copy_text("", name, length) : NVML_NOT_FOUND);
}
