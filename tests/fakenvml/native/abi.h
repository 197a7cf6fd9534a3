/* The part of NVML's binary interface that this library answers: codes, constants and struct layouts.
 *
 * Source: NVIDIA's NVML API reference and the layouts that nvidia-ml-py 13.615 declares for ctypes.
 */
#ifndef FAKENVML_ABI_H
#define FAKENVML_ABI_H

#include <stdint.h>

#define API __attribute__((visibility("default")))

typedef unsigned int nvmlReturn_t;
typedef void *nvmlHandle_t; /* devices, instances: a value, never followed */

enum {
    NVML_SUCCESS = 0,
    NVML_UNINITIALIZED = 1,
    NVML_INVALID_ARGUMENT = 2,
    NVML_NOT_SUPPORTED = 3,
    NVML_NO_PERMISSION = 4,
    NVML_NOT_FOUND = 6,
    NVML_INSUFFICIENT_SIZE = 7,
    NVML_DRIVER_NOT_LOADED = 9,
    NVML_TIMEOUT = 10,
    NVML_GPU_IS_LOST = 15,
    NVML_RESET_REQUIRED = 16,
    NVML_IN_USE = 19,
    NVML_MEMORY = 20,
    NVML_NO_DATA = 21,
    NVML_INSUFFICIENT_RESOURCES = 23,
    NVML_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_UNKNOWN = 999,
};

enum {
    NVML_EVENT_SINGLE_BIT = 0x1,
    NVML_EVENT_DOUBLE_BIT = 0x2,
    NVML_EVENT_XID = 0x8,
    NVML_EVENT_MIG = 0x100,
    NVML_EVENT_UNAVAILABLE = 0x4000,
    NVML_EVENT_RECOVERY = 0x8000,
};

#define NVML_ANY_ID 0xFFFFFFFFu
#define NVML_MEMORY_NOT_AVAILABLE UINT64_MAX

/* A versioned struct starts with its size and its version in the top byte. */
#define NVML_VERSION(type, version) ((unsigned)sizeof(type) | ((unsigned)(version) << 24))

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device, pci_subsystem;
    char bus_id[32];
} nvmlPciInfo;

typedef struct {
    unsigned long long total, free, used;
} nvmlMemory;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2;

typedef struct {
    unsigned gpu, memory;
} nvmlUtilization;

typedef struct {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance, compute_instance;
} nvmlProcessInfo;

typedef struct {
    unsigned pid;
    unsigned long long time_us;
    unsigned sm, memory, encoder, decoder;
} nvmlProcessUtilization;

typedef struct {
    unsigned long long reference_ns, violation_ns;
} nvmlViolationTime;

typedef union {
    double real;
    unsigned u32;
    unsigned long long u64;
} nvmlValue;

enum { NVML_VALUE_DOUBLE = 0, NVML_VALUE_U32 = 1, NVML_VALUE_U64 = 3 };

typedef struct {
    uint32_t field, scope;
    int64_t time_us, latency_us;
    unsigned type;
    nvmlReturn_t status;
    nvmlValue value;
} nvmlFieldValue;

typedef struct {
    unsigned char cluster[16];
    nvmlReturn_t status;
    uint32_t clique;
    unsigned state;
} nvmlFabric;

typedef struct {
    unsigned version;
    unsigned char cluster[16];
    nvmlReturn_t status;
    uint32_t clique;
    unsigned state;
    uint32_t health_mask;
} nvmlFabric_v2;

typedef struct {
    unsigned version;
    unsigned char cluster[16];
    nvmlReturn_t status;
    uint32_t clique;
    unsigned state;
    uint32_t health_mask;
    uint8_t health_summary;
} nvmlFabric_v3;

typedef struct {
    unsigned start, size;
} nvmlPlacement;

typedef struct {
    unsigned id, p2p, slices, instances, multiprocessors, copy, decoder, encoder, jpeg, ofa;
    unsigned long long memory_mib;
} nvmlGpuInstanceProfile;

typedef struct {
    unsigned version, id, p2p, slices, instances, multiprocessors, copy, decoder, encoder, jpeg, ofa;
    unsigned long long memory_mib;
    char name[96];
} nvmlGpuInstanceProfile_v2;

typedef struct {
    nvmlHandle_t device;
    unsigned id, profile;
    nvmlPlacement placement;
} nvmlGpuInstanceInfo;

typedef struct {
    unsigned id, slices, instances, multiprocessors, copy, decoder, encoder, jpeg, ofa;
} nvmlComputeInstanceProfile;

typedef struct {
    unsigned version, id, slices, instances, multiprocessors, copy, decoder, encoder, jpeg, ofa;
    char name[96];
} nvmlComputeInstanceProfile_v2;

typedef struct {
    nvmlHandle_t device, gpu_instance;
    unsigned id, profile;
    nvmlPlacement placement;
} nvmlComputeInstanceInfo;

typedef struct {
    unsigned multiprocessors, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices;
    unsigned long long memory_mib;
} nvmlAttributes;

typedef struct {
    nvmlHandle_t device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} nvmlEventData;

typedef struct {
    unsigned id;
    nvmlReturn_t status;
    double value;
    struct {
        const char *short_name, *long_name, *unit;
    } info;
} nvmlGpmMetric;

typedef struct {
    unsigned version, count;
    void *first, *second;
    nvmlGpmMetric metrics[];
} nvmlGpmMetrics;

typedef struct {
    unsigned version, supported;
} nvmlGpmSupport;

#endif
