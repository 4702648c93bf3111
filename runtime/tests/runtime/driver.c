/* A driver of NVIDIA's without a GPU: memory is this machine's, and the kernels of ptx.rs are done here, block after
   block, from the parameter of their launch. It is as strict as the real one about what the tests ask of it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, INVALID_PTX = 218, PTX_VERSION = 222, NOT_FOUND = 500, FAULT = 700,
       NOT_SUPPORTED = 801 };
enum { V = 3, CHUNK = 2 };

struct tensor { char *data; int64_t sequence, time, head, heads; };
struct call { int32_t sequences, heads; int64_t length; char *workspace; const int64_t *offsets;
              struct tensor tensors[100]; };
struct function { char name[64]; size_t bytes; int shared; };
struct module { char *text; struct function functions[8]; int n; };

static int broken;
#define WORKING if (broken) return broken

int cuInit(unsigned flags) { return flags ? INVALID : OK; }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal ? INVALID : OK; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, (size_t)length, "none (%d)", device); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1ull << 34; return device == 7 ? OK : INVALID; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 16: *value = 132; return OK;    /* multiprocessors */
    case 38: *value = 1 << 20; return OK; /* shared cache */
    case 75: *value = 9; return OK;
    case 76: *value = 0; return OK;
    case 97: *value = 227 << 10; return OK; /* shared memory a block may ask for */
    }
    return INVALID;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)8; return device == 7 ? OK : INVALID; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device == 7 ? OK : INVALID; }
static __thread void *current;
int cuCtxSetCurrent(void *context) { current = context; return OK; }
#define CURRENT if (current != (void *)8) return 201
int cuMemGetInfo_v2(size_t *free, size_t *total) { CURRENT; *free = 1 << 26; *total = 1ull << 34; return OK; }

int cuStreamCreate(void **stream, unsigned flags) { CURRENT; *stream = malloc(1); return flags == 1 ? OK : INVALID; }
int cuStreamDestroy_v2(void *stream) { free(stream); return OK; }
int cuStreamSynchronize(void *stream) { CURRENT; WORKING; return stream ? OK : INVALID; }
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    CURRENT; WORKING;
    if (!bytes) return INVALID;
    if (bytes > 1ull << 34) return OUT_OF_MEMORY;
    void *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!memory) return OUT_OF_MEMORY;
    if (bytes < 1 << 20) memset(memory, 0x5a, bytes);
    *address = (uint64_t)(uintptr_t)memory;
    return OK;
}
int cuMemFree_v2(uint64_t address) { CURRENT; WORKING; free((void *)(uintptr_t)address); return OK; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    CURRENT; WORKING;
    memcpy((void *)(uintptr_t)to, from, bytes);
    return stream ? OK : INVALID;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    CURRENT; WORKING;
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return stream ? OK : INVALID;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    CURRENT; WORKING;
    if (to < from + bytes && from < to + bytes) return INVALID;
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
    return stream ? OK : INVALID;
}
int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t n, void *stream) {
    CURRENT; WORKING;
    memset((void *)(uintptr_t)to, byte, n);
    return stream ? OK : INVALID;
}

int cuEventCreate(void **event, unsigned flags) { CURRENT; *event = calloc(1, sizeof(double)); return flags ? INVALID : OK; }
int cuEventRecord(void *event, void *stream) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *(double *)event = 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
    return stream ? OK : INVALID;
}
int cuEventElapsedTime_v2(float *milliseconds, void *from, void *to) {
    *milliseconds = (float)(*(double *)to - *(double *)from);
    return OK;
}
int cuEventDestroy_v2(void *event) { free(event); return OK; }

int cuModuleLoadDataEx(void **module, const char *image, unsigned n, int *options, void **values) {
    CURRENT; WORKING;
    if (!strncmp(image, "\177ELF", 4)) return NOT_SUPPORTED;
    if (strstr(image, ".version 99.0")) return PTX_VERSION;
    if (strstr(image, "f33")) {
        if (n == 2 && options[0] == 5 && options[1] == 6) snprintf(values[0], (size_t)(uintptr_t)values[1], "line 1: f33");
        return INVALID_PTX;
    }
    struct module *it = calloc(1, sizeof *it);
    it->text = strdup(image);
    for (char *at = it->text; (at = strstr(at, ".entry ")) && it->n < 8; at++)
        if (sscanf(at, ".entry %63[^(](.param .align 8 .b8 call[%zu])", it->functions[it->n].name,
                   &it->functions[it->n].bytes) == 2) it->n++;
    *module = it;
    return OK;
}
int cuModuleUnload(struct module *module) { CURRENT; free(module->text); free(module); return OK; }
int cuModuleGetFunction(void **function, struct module *module, const char *name) {
    CURRENT; WORKING;
    for (int i = 0; i < module->n; i++)
        if (!strcmp(module->functions[i].name, name)) { *function = &module->functions[i]; return OK; }
    return NOT_FOUND;
}
int cuFuncGetAttribute(int *value, int attribute, void *function) {
    *value = 1024;
    return attribute || !function ? INVALID : OK;
}
int cuFuncGetParamInfo(struct function *function, size_t index, size_t *offset, size_t *size) {
    *offset = 0;
    *size = function->bytes;
    return index ? INVALID : OK;
}
int cuFuncSetAttribute(struct function *function, int attribute, int value) {
    function->shared = value;
    return attribute == 8 ? OK : INVALID;
}
int cuLinkCreate_v2(unsigned n, int *options, void **values, void **state) {
    (void)n; (void)options; (void)values; (void)state;
    return NOT_SUPPORTED;
}

/* One block's view of a call. */
struct block { const struct call *call; int64_t n, h, chunk, start, length, id; };

static float *at(const struct block *b, int i, int64_t rows) {
    const struct tensor *it = &b->call->tensors[i];
    return (float *)it->data + rows + b->h / (b->call->heads / it->heads) * it->head;
}
static float *token(const struct block *b, int i, int64_t t) {
    const struct tensor *it = &b->call->tensors[i];
    return at(b, i, (b->call->offsets ? b->start * it->time : b->n * it->sequence) + t * it->time);
}
static float *sequence(const struct block *b, int i) { return at(b, i, b->n * b->call->tensors[i].sequence); }
static float *saved(const struct block *b, int i, int64_t chunk) {
    return at(b, i, (b->start / CHUNK + b->n + chunk) * b->call->tensors[i].time);
}

static void pass(const struct block *b, int saving) {
    float state[V], w = *at(b, 3, 0);
    memcpy(state, sequence(b, 4), sizeof state);
    for (int64_t t = 0; t < b->length; t++) {
        if (saving && t % CHUNK == 0) memcpy(saved(b, 7, t / CHUNK), state, sizeof state);
        for (int j = 0; j < V; j++) state[j] = w * state[j] + *token(b, 1, t) * token(b, 2, t)[j];
        memcpy(token(b, saving ? 8 : 7, t), state, sizeof state);
    }
    memcpy(sequence(b, 6), state, sizeof state);
}
static void outputs(const struct block *b, int saving) {
    for (int64_t t = b->chunk * CHUNK; t < (b->chunk + 1) * CHUNK && t < b->length; t++)
        for (int j = 0; j < V; j++) token(b, 5, t)[j] = *token(b, 0, t) * token(b, saving ? 8 : 7, t)[j];
}
static void gradients(const struct block *b) {
    float *before = (float *)(b->call->workspace + 256 * b->id), *after = before + 16, adj[V], w = *at(b, 3, 0), dw = 0;
    memcpy(adj, sequence(b, 6), sizeof adj);
    for (int64_t t = b->length; t-- > 0;) {
        memcpy(after, saved(b, 4, t / CHUNK), V * sizeof *after);
        for (int64_t u = t / CHUNK * CHUNK; u <= t; u++)
            for (int j = 0; j < V; j++) {
                before[j] = after[j];
                after[j] = w * before[j] + *token(b, 1, u) * token(b, 2, u)[j];
            }
        float dq = 0, dk = 0;
        for (int j = 0; j < V; j++) {
            float out = token(b, 5, t)[j];
            adj[j] += *token(b, 0, t) * out;
            dq += out * after[j];
            dk += adj[j] * token(b, 2, t)[j];
            token(b, 9, t)[j] = adj[j] * *token(b, 1, t);
            dw += adj[j] * before[j];
            adj[j] *= w;
        }
        *token(b, 7, t) = dq;
        *token(b, 8, t) = dk;
    }
    *sequence(b, 10) = dw;
    memcpy(sequence(b, 11), adj, sizeof adj);
}

int cuLaunchKernel(struct function *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty,
                   unsigned tz, unsigned shared, void *stream, void **parameters, void **extra) {
    CURRENT; WORKING;
    if (!x || !y || !z || y > 65535 || z > 65535 || threads != 32 || ty != 1 || tz != 1 || !stream || extra) return INVALID;
    if (shared > 48 << 10 && (int)shared > function->shared) return INVALID;
    struct call call;
    memset(&call, 0, sizeof call);
    memcpy(&call, parameters[0], function->bytes);
    int items = !strcmp(function->name, "pass") || !strcmp(function->name, "gradients");
    for (unsigned k = 0; k < z; k++)
        for (unsigned j = 0; j < y; j++)
            for (unsigned i = 0; i < x; i++) {
                struct block b = {&call, k, j, i, 0, call.length, i + (int64_t)x * (j + (int64_t)y * k)};
                if (items) { b.n = i / (unsigned)call.heads; b.h = i % (unsigned)call.heads; }
                b.start = call.offsets ? call.offsets[b.n] : b.n * call.length;
                if (call.offsets) b.length = call.offsets[b.n + 1] - b.start;
                int saving = function->bytes == 32 + 40 * 9;
                if (!strcmp(function->name, "pass")) pass(&b, saving);
                else if (!strcmp(function->name, "outputs")) outputs(&b, saving);
                else if (!strcmp(function->name, "gradients")) gradients(&b);
                /* As on a GPU, the launch itself is well; what comes after it is not. */
                else if (!strcmp(function->name, "faulty")) broken = FAULT;
            }
    return OK;
}

int cuGetErrorName(int error, const char **name) {
    *name = error == FAULT ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR";
    return OK;
}
int cuGetErrorString(int error, const char **text) {
    *text = error == FAULT ? "an illegal memory access was encountered" : "an error";
    return OK;
}
