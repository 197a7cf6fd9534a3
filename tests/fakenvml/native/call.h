/* What every call does first and last: one at a time, on the newest machine, unless a rule says otherwise. */
#ifndef FAKENVML_CALL_H
#define FAKENVML_CALL_H

#include "state.h"

/* What a handle stands for: a GPU, a GPU instance, a compute instance, or a MIG device (the last of these). */
typedef struct {
    const Machine *machine;
    const Gpu *gpu;
    const Instance *instance;
    const Compute *compute;
} Target;

typedef enum { GPU = 1, INSTANCE, COMPUTE, MIG_DEVICE } Kind;

nvmlHandle_t handle_of(Kind kind, const Gpu *gpu, const Instance *instance, const Compute *compute);
/* NOT_FOUND for what no longer exists, INVALID_ARGUMENT for no handle, GPU_IS_LOST; `kinds` is a set of bits. */
nvmlReturn_t handle_target(const Machine *machine, nvmlHandle_t handle, unsigned kinds, Target *target);

enum { ANY_DEVICE = 1 << GPU | 1 << MIG_DEVICE };

/* Start a call: takes the lock whatever it returns, so that every call ends with `call_end`. `out` must not be
 * NULL. A MIG device where only GPUs will do is NOT_SUPPORTED. */
nvmlReturn_t call_machine(const char *function, const void *out, const Machine **machine);
nvmlReturn_t call_device(const char *function, nvmlHandle_t device, const void *out, Target *target);
nvmlReturn_t call_gpu(const char *function, nvmlHandle_t device, const void *out, const Gpu **gpu);
nvmlReturn_t call_instance(const char *function, nvmlHandle_t instance, const void *out, Target *target);
nvmlReturn_t call_compute(const char *function, nvmlHandle_t compute, const void *out, Target *target);
nvmlReturn_t call_end(nvmlReturn_t status);

/* Start and stop the library, as a call each. For whoever waits with the lock free: whether it is open still, and
 * the newest machine, NULL without one. */
nvmlReturn_t call_open(const char *function);
nvmlReturn_t call_close(void);
bool call_is_open(void);
const Machine *call_refresh(void);
void call_unlock(void);
void call_lock(void);

/* A change inside a call: needs root, and is where a `crash` rule kills the process. */
nvmlReturn_t write_begin(Edit *edit);
nvmlReturn_t write_end(Edit *edit, nvmlReturn_t status);

nvmlReturn_t copy_text(const char *text, char *buffer, unsigned length);

#endif
