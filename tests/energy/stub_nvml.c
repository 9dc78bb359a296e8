/* A libnvidia-ml.so.1 without a GPU. The environment chooses, at each call, what it pretends to be:
 *   STUB_NVML=desktop  two GPUs, everything works, the counter moves in steps of 100 ms
 *   STUB_NVML=pascal   power yes, energy and field values no (before Volta)
 *   STUB_NVML=hopper   energy by field value in scope MODULE only (Grace Hopper)
 *   STUB_NVML=jetson   initialises and counts one GPU, then supports nothing
 *   STUB_NVML=laptop   tells its load and no power; STUB_LIMIT_MW is its limit, if it knows one
 *   STUB_NVML=lost     the GPU has fallen off the bus
 *   STUB_NVML=mig      one GPU cut into slices
 *   unset              no driver
 * STUB_POWER_MW is the power. Signatures follow NVIDIA's public nvml.h. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int ret;
enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, NO_DRIVER = 9, LOST = 15 };
typedef struct { unsigned id, scope; long long stamp, latency; int type, code; union { double d; unsigned u; unsigned long ul; unsigned long long ull; } value; } field;

static int users;
static char gpus[2], slice;

static const char *mode(void) { const char *m = getenv("STUB_NVML"); return m ? m : ""; }
static int is(const char *name) { return strcmp(mode(), name) == 0; }
static unsigned power_mw(void) { const char *p = getenv("STUB_POWER_MW"); return p ? (unsigned)atoi(p) : 50000; }
static unsigned long long energy_mj(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 5000000000ull + (unsigned long long)(t.tv_sec * 10 + t.tv_nsec / 100000000) * power_mw() / 10;
}
static unsigned count(void) { return is("desktop") ? 2 : 1; }
static ret ready(void *device) {
    if (users <= 0) return UNINITIALIZED;
    if (device == &slice) return is("mig") ? OK : INVALID;
    return device == &gpus[0] || device == &gpus[1] ? OK : INVALID;
}

ret nvmlInitWithFlags(unsigned flags) { (void)flags; if (!*mode()) return NO_DRIVER; users++; return OK; }
ret nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
ret nvmlShutdown(void) { if (users <= 0) return UNINITIALIZED; users--; return OK; }
int stub_users(void) { return users; }
const char *nvmlErrorString(ret code) {
    switch (code) {
        case UNINITIALIZED: return "Uninitialized";
        case NOT_SUPPORTED: return "Not Supported";
        case NO_DRIVER: return "Driver Not Loaded";
        case LOST: return "GPU is lost";
        default: return "Unknown Error";
    }
}
ret nvmlDeviceGetCount_v2(unsigned *n) { if (users <= 0) return UNINITIALIZED; *n = count(); return OK; }
ret nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) {
    if (users <= 0) return UNINITIALIZED;
    if (i >= count()) return NOT_FOUND;
    *device = &gpus[i];
    return OK;
}
static const char *uuid(void *device) {
    if (is("jetson")) return "GPU-orin";
    return device == &gpus[1] ? "GPU-bbbb-2222" : "GPU-aaaa-1111";
}
ret nvmlDeviceGetUUID(void *device, char *text, unsigned size) {
    ret r = ready(device);
    if (r == OK) strncpy(text, device == &slice ? "MIG-cccc" : uuid(device), size);
    return r;
}
ret nvmlDeviceGetHandleByUUID(const char *text, void **device) {
    if (users <= 0) return UNINITIALIZED;
    if (is("mig") && strcmp(text, "MIG-cccc") == 0) { *device = &slice; return OK; }
    return NOT_FOUND;
}
ret nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *device, void **parent) {
    if (device != &slice) return INVALID;
    *parent = &gpus[0];
    return OK;
}
ret nvmlDeviceGetName(void *device, char *text, unsigned size) {
    ret r = ready(device);
    if (r == OK) strncpy(text, is("jetson") ? "Orin (nvgpu)" : is("pascal") ? "GTX 1080" : is("laptop") ? "NVIDIA GeForce MX150" : "RTX Stub", size);
    return r;
}
ret nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *later) {
    if (!is("mig")) return NOT_SUPPORTED;
    *now = *later = 1;
    return ready(device);
}
static ret reads(void *device, int works) {
    ret r = ready(device);
    if (r != OK) return r;
    return is("lost") ? LOST : works ? OK : NOT_SUPPORTED;
}
ret nvmlDeviceGetPowerUsage(void *device, unsigned *mw) {
    *mw = power_mw();
    return reads(device, is("desktop") || is("pascal") || is("mig"));
}
ret nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    *mj = energy_mj();
    return reads(device, is("desktop") || is("mig"));
}
ret nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
    (void)sensor;
    *celsius = 61;
    return reads(device, !is("jetson"));
}
ret nvmlDeviceGetUtilizationRates(void *device, unsigned *load) {
    load[0] = 40;
    load[1] = 10;
    return reads(device, !is("jetson"));
}
ret nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw) {
    const char *limit = getenv("STUB_LIMIT_MW");
    *mw = limit ? (unsigned)atoi(limit) : 0;
    return reads(device, limit != NULL);
}
ret nvmlDeviceGetPowerManagementLimit(void *device, unsigned *mw) { return nvmlDeviceGetEnforcedPowerLimit(device, mw); }
ret nvmlDeviceGetFieldValues(void *device, int n, field *fields) {
    ret r = reads(device, 1);
    if (is("pascal")) return NOT_SUPPORTED;
    for (int i = 0; r == OK && i < n; i++) {
        field *f = &fields[i];
        int works = is("desktop") || (is("hopper") && f->scope == 1);
        f->code = works ? OK : NOT_SUPPORTED;
        f->type = f->id == 83 ? 3 : 1;
        if (f->id == 83) f->value.ull = energy_mj(); else f->value.u = power_mw();
    }
    return r;
}
