/* A library that pretends to be NVIDIA's, for tests. What it pretends is in the environment:
 *   FAKE_COUNT   GPUs (1)                    FAKE_INIT     result of nvmlInit_v2 (0)
 *   FAKE_CC, FAKE_ENVIRONMENT, FAKE_TOOLS    the confidential-computing state (1, 2, 0)
 *   FAKE_LENGTH  of report and chain (40)    FAKE_STUCK    setting the ready state does nothing
 *   FAKE_TROUBLE a file: while it is missing all is well; "reset" in it takes the ready state back, any other
 *                content is the XID of a critical error
 * Declarations: NVIDIA, NVML API Reference Guide. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct { unsigned environment, feature, tools; } state_t;
typedef struct { unsigned chain_size, size; unsigned char chain[4096], attestation[5120]; } certificate_t;
typedef struct {
    unsigned has_cec, size, cec_size;
    unsigned char nonce[32], report[8192], cec[4096];
} report_t;
typedef struct { void *device; unsigned long long type, data; unsigned gpu, compute; } event_t;

static unsigned ready;

static unsigned number(const char *name, unsigned otherwise) {
    const char *text = getenv(name);
    return text ? (unsigned)atoi(text) : otherwise;
}

static int trouble(char *text, int size) {
    const char *path = getenv("FAKE_TROUBLE");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return 0;
    text[fread(text, 1, size - 1, file)] = 0;
    fclose(file);
    return 1;
}

int nvmlInit_v2(void) { return (int)number("FAKE_INIT", 0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : "Some Error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("FAKE_COUNT", 1); return 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(size_t)(index + 1);
    return 0;
}

int nvmlSystemGetConfComputeState(state_t *state) {
    state->environment = number("FAKE_ENVIRONMENT", 2);
    state->feature = number("FAKE_CC", 1);
    state->tools = number("FAKE_TOOLS", 0);
    return 0;
}

int nvmlDeviceGetConfComputeGpuAttestationReport(void *device, report_t *report) {
    memcpy(report->report, report->nonce, 32);
    report->report[32] = (unsigned char)(size_t)device;
    report->size = number("FAKE_LENGTH", 40);
    return 0;
}

int nvmlDeviceGetConfComputeGpuCertificate(void *device, certificate_t *certificate) {
    memset(certificate->attestation, 'c', 40);
    certificate->attestation[0] = (unsigned char)(size_t)device;
    certificate->size = number("FAKE_LENGTH", 40);
    return 0;
}

int nvmlEventSetCreate(void **set) { *set = &ready; return 0; }
int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) {
    return device && types == 8 && set == &ready ? 0 : 2;
}

int nvmlSystemSetConfComputeGpusReadyState(unsigned value) {
    if (!getenv("FAKE_STUCK")) ready = value;
    return 0;
}

int nvmlSystemGetConfComputeGpusReadyState(unsigned *value) {
    char text[16];
    *value = trouble(text, sizeof text) && !strcmp(text, "reset") ? 0 : ready;
    return 0;
}

int nvmlEventSetWait_v2(void *set, event_t *event, unsigned timeout_ms) {
    char text[16];
    struct timespec step = {0, 1000000};
    for (unsigned waited = 0; set == &ready && waited < timeout_ms; waited++) {
        if (trouble(text, sizeof text)) {
            if (!strcmp(text, "reset")) return 10;
            event->data = strtoull(text, NULL, 10);
            return 0;
        }
        nanosleep(&step, NULL);
    }
    return 10;
}
